"""What people look at: charts, overlays and one offline HTML page."""
