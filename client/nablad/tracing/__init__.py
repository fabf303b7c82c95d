"""Python loss functions as text of the loss language.

`program` calls the function with `symbols` and `models`; NumPy calls (`numpy_table`, `numpy_calls`) and the
functions in `operators` are recorded (`recorder`) as a `graph` of `expressions`; `writing` prints it:
`survey` and `line_lengths` decide what is assigned, `naming` what it is called.
"""

from nablad.tracing.errors import TraceError
from nablad.tracing.program import Traced, trace

__all__ = ["TraceError", "Traced", "trace"]
