"""Networks in pure PyTorch (extra ``train``); nothing that inspects imports them."""
