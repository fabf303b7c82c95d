"""From a result to the bytes of its answer."""
