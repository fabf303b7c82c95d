"""Where callers come in: addresses, the protocol on a connection, memory shared with them."""
