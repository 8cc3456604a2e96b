"""``steelsight serve``: an HTTP interface for machines and a page for people, in one process."""
