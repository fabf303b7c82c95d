"""The engine: plans, compiles and runs programs. The only part of the service that imports JAX."""
