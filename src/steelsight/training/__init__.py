"""From trained weights to a bundle (extra ``train``)."""
