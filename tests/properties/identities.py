"""What must be equal, as pairs of texts.

`X` is the variable and `z` another one; `u` is a value with a number an example (or a number alone), `f` and
`g` are shaped like the variable or, for parameters, like a batch; `v` and `k` are vectors like the variable,
`m` and `n` like `f`.
"""

from __future__ import annotations

Pair = tuple[str, str]

LINEAR_IN_THE_VALUE: tuple[Pair, ...] = (
    ("jvp(2 * f - 3 * g, X, v)", "2 * jvp(f, X, v) - 3 * jvp(g, X, v)"),
    ("ravel(vjp(2 * f - 3 * g, X, m))", "2 * ravel(vjp(f, X, m)) - 3 * ravel(vjp(g, X, m))"),
    ("jacobian(2 * f - 3 * g, X)", "2 * jacobian(f, X) - 3 * jacobian(g, X)"),
)
IN_THE_DIRECTION: tuple[Pair, ...] = (
    ("jvp(f, X, 2 * v - 3 * k)", "2 * jvp(f, X, v) - 3 * jvp(f, X, k)"),
    ("ravel(vjp(f, X, 2 * m - 3 * n))", "2 * ravel(vjp(f, X, m)) - 3 * ravel(vjp(f, X, n))"),
    ("ravel(hvp(sum(u), X, 2 * v - 3 * k))", "2 * ravel(hvp(sum(u), X, v)) - 3 * ravel(hvp(sum(u), X, k))"),
)
ADJOINT: tuple[Pair, ...] = (
    ("dot(m, jvp(f, X, v))", "dot(vjp(f, X, m), v)"),
    ("dot(k, hvp(sum(u), X, v))", "dot(hvp(sum(u), X, k), v)"),
    ("dot(v, grad(sum(u), X))", "sum(jvp(sum(u), X, v))"),
    ("ravel(grad(sum(u), X))", "ravel(vjp(u, X, ones_like(u)))"),
    ("ravel(grad(sum(u), X))", "ravel(jacobian(sum(u), X))"),
)

OF_A_POINT: tuple[Pair, ...] = (
    *(*LINEAR_IN_THE_VALUE, *IN_THE_DIRECTION, *ADJOINT),
    ("laplacian(u, X)", "trace(hessian(u, X))"),
    ("laplacian(2 * u - 3 * f[0], X)", "2 * laplacian(u, X) - 3 * laplacian(f[0], X)"),
    ("grad(2 * u - 3 * f[1], X)", "2 * grad(u, X) - 3 * grad(f[1], X)"),
    ("divergence(f, X)", "trace(jacobian(f, X))"),
    ("divergence(2 * f - 3 * g, X)", "2 * divergence(f, X) - 3 * divergence(g, X)"),
    ("laplacian(u, X)", "divergence(grad(u, X), X)"),
    ("hvp(u, X, v)", "jvp(grad(u, X), X, v)"),
    ("hvp(u, X, v)", "vjp(grad(u, X), X, v)"),
    ("hvp(u, X, v)", "hessian(u, X) @ v"),
    ("hvp(u, X, v)", "v @ hessian(u, X)"),
    ("hessian(u, X)", "jacobian(grad(u, X), X)"),
    ("hessian(u, X)", "hessian(u, X).T"),
    ("jvp(f, X, v)", "jacobian(f, X) @ v"),
    ("vjp(f, X, m)", "m @ jacobian(f, X)"),
    ("hutchinson_trace(f, X, sqrt(2.0) * eye(2))", "divergence(f, X)"),
    ("hutchinson_trace(f, X, stack([v, k]))", "(dot(v, jvp(f, X, v)) + dot(k, jvp(f, X, k))) / 2"),
)
BASIS = "sqrt(2.0) * broadcast_to(eye(2)[:, None, :], (2, 3, 2))"
OF_A_BATCH: tuple[Pair, ...] = (
    *(*LINEAR_IN_THE_VALUE, *IN_THE_DIRECTION, *ADJOINT),
    ("laplacian(u, X)", 'einsum("ikik->i", jacobian(grad(sum(u), X), X))'),
    ("laplacian(u, X)", "divergence(grad(sum(u), X), X)"),
    ("laplacian(2 * u - 3 * f[:, 0], X)", "2 * laplacian(u, X) - 3 * laplacian(f[:, 0], X)"),
    ("divergence(f, X)", 'einsum("ikik->i", jacobian(f, X))'),
    ("divergence(f, X)", 'einsum("ikk->i", batched_jacobian(f, X))'),
    ("batched_jacobian(f, X)", 'einsum("ikil->ikl", jacobian(f, X))'),
    ("batched_jacobian(u, X)[:, 0]", "grad(sum(u), X)"),
    ("batched_jacobian(2 * f - 3 * g, X)", "2 * batched_jacobian(f, X) - 3 * batched_jacobian(g, X)"),
    ("batched_jacobian(grad(sum(u), X), X)", "transpose(batched_jacobian(grad(sum(u), X), X), (0, 2, 1))"),
    ("hessian(sum(u), X)", "transpose(hessian(sum(u), X), (2, 3, 0, 1))"),
    ("hessian(sum(u), X)", "jacobian(grad(sum(u), X), X)"),
    ("hvp(sum(u), X, v)", 'einsum("ijkl,kl->ij", hessian(sum(u), X), v)'),
    ("hvp(sum(u), X, v)", "jvp(grad(sum(u), X), X, v)"),
    ("jvp(f, X, v)", 'einsum("nij,nj->ni", batched_jacobian(f, X), v)'),
    ("jvp(f, X, v)", 'einsum("ijkl,kl->ij", jacobian(f, X), v)'),
    ("vjp(f, X, m)", 'einsum("ij,ijkl->kl", m, jacobian(f, X))'),
    (f"hutchinson_trace(f, X, {BASIS})", "divergence(f, X)"),
    ("hutchinson_trace(f, X, v)", "sum(v * vjp(f, X, v), axis=1)"),
    ("hutchinson_trace(f, X, stack([v, k]))", "hutchinson(f, X, stack([v, k]))[0]"),
    (
        "hutchinson_trace(2 * f - 3 * g, X, v)",
        "2 * hutchinson_trace(f, X, v) - 3 * hutchinson_trace(g, X, v)",
    ),
    (
        "hutchinson(f, X, stack([v, k]))[1]",
        "0.5 * abs(hutchinson_trace(f, X, v) - hutchinson_trace(f, X, k))",
    ),
)
OF_ENTRIES: tuple[Pair, ...] = (
    *ADJOINT,
    ("d(f, X, z)", "d(d(f, X), z)"),
    ("d(f, X, z)", "d(f, z, X)"),
    ("d(f, X, X)", "d(d(f, X), X)"),
    ("d(f, X, X)", "diag(hessian(sum(f), X))"),
    ("d(f, X, X, X)", "d(d(f, X, X), X)"),
    ("d(f, X)", "jvp(f, X, ones_like(X))"),
    ("d(f, X)", "grad(sum(f), X)"),
    ("d(f, X)", "diag(jacobian(f, X))"),
    ("d(2 * f - 3 * g, X)", "2 * d(f, X) - 3 * d(g, X)"),
    ("sum(d(f, X, X))", "laplacian(sum(f), X)"),
    ("sum(d(f, X))", "divergence(f, X)"),
    ("v * d(f, X)", "jvp(f, X, v)"),
    ("m * d(f, X)", "vjp(f, X, m)"),
)
OF_PARAMETERS: tuple[Pair, ...] = (
    *(*LINEAR_IN_THE_VALUE, *IN_THE_DIRECTION, *ADJOINT),
    ("ravel(grad(sum(u), X))", "jacobian(sum(u), X)[0]"),
    ("ravel(vjp(f, X, m))", "ravel(m) @ jacobian(f, X)"),
    ("ravel(jvp(f, X, v))", "jacobian(f, X) @ ravel(v)"),
    ("ravel(hvp(sum(u), X, v))", "hessian(sum(u), X) @ ravel(v)"),
    ("hessian(sum(u), X)", "hessian(sum(u), X).T"),
    ('grad(sum(u), X["layer_1.weight"])', 'grad(sum(u), X)["layer_1.weight"]'),
    ('vjp(f, X["layer_2.bias"], m)', 'vjp(f, X, m)["layer_2.bias"]'),
    (
        'hvp(sum(u), X["layer_1.bias"], sin(X["layer_1.bias"]))',
        'hessian(sum(u), X["layer_1.bias"]) @ sin(X["layer_1.bias"])',
    ),
    ("ravel(unravel_like(ravel(v), X))", "ravel(v)"),
)
