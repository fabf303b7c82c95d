"""Programs from their text to what is compiled, and what timing teaches about them."""
