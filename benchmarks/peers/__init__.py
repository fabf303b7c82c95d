"""Other servers of gradients, installed from PyPI into an environment of their own and started natively."""
