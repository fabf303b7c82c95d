"""Training state on the server: sessions, whose loop the caller keeps, and loops that it gives away."""
