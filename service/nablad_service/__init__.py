"""The nablad server."""
