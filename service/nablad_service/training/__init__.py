"""Training state that stays on the server: optimisers, sessions, their saves."""
