"""Kernels made of derivatives: neural tangent kernels, particles, Gaussian processes with slopes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import grad, hessian, jacfwd, jacrev, vmap
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient
from networks import mlp, mlp_json, scalar
from reference import Case, check, loss, normal

import nablad

NET = mlp_json(2, 4, 1)


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


@loss(
    """
def diagonal(q):
    return norm(grad(model(q)[0], model.params))**2

mean(vmap(diagonal)(x))
""",
    models={"model": NET},
    inputs={"x": normal(5, 2)},
    wrt=["params", "x"],
)
def tangent_kernel_diagonal(p: Any, x: Any) -> Any:
    # One hidden layer: K(q, q) = 1 + |h|^2 + |c (1 - h^2)|^2 (1 + |q|^2) with h = tanh(W q + b).
    h = jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"])
    back = p["layer_2.weight"][0] * (1 - h**2)
    square = lambda a: jnp.sum(a**2, axis=1)  # noqa: E731
    return jnp.mean(1 + square(h) + square(back) * (1 + square(x))), {}


@loss(
    """
J = jacobian(model(x)[:, 0], model.params)
K = J @ J.T
n = x.shape[0]
alpha = solve(K + ridge * eye(n), y)
evidence = 0.5 * y @ alpha + 0.5 * slogdet(K + ridge * eye(n))[1]
off = sum((K * (1 - eye(n)))**2)
evidence + 0.01 * off
""",
    models={"model": NET},
    inputs={"x": normal(5, 2), "y": normal(5, seed=1), "ridge": 0.5},
    wrt=["params", "x", "y", "ridge"],
    terms=["evidence", "off"],
)
def tangent_kernel_regression(p: Any, x: Any, y: Any, ridge: Any) -> Any:
    def k(a: Any, b: Any) -> Any:
        """The inner product of two parameter gradients, in the closed form of one hidden layer."""
        W, bias, c = p["layer_1.weight"], p["layer_1.bias"], p["layer_2.weight"][0]
        ha, hb = jnp.tanh(W @ a + bias), jnp.tanh(W @ b + bias)
        return 1 + ha @ hb + jnp.sum(c**2 * (1 - ha**2) * (1 - hb**2)) * (1 + a @ b)

    K = vmap(vmap(k, (None, 0)), (0, None))(x, x)
    eigenvalues, vectors = jnp.linalg.eigh(K + ridge * jnp.eye(len(x), dtype=x.dtype))
    evidence = jnp.sum((vectors.T @ y) ** 2 / eigenvalues) / 2 + jnp.sum(jnp.log(eigenvalues)) / 2
    off = jnp.sum(jnp.tril(K, -1) ** 2) * 2
    return evidence + 0.01 * off, {"evidence": evidence, "off": off}


@loss(
    """
J = jacobian(model(x), model.params)
blocks = reshape(J, (x.shape[0], 2, -1))
K = einsum("iap,jbp->iajb", blocks, blocks)
diagonal = einsum("iaia->", K)
frobenius = norm(K)
diagonal + frobenius
""",
    models={"model": mlp_json(2, 4, 2)},
    inputs={"x": normal(3, 2)},
    wrt=["params", "x"],
    terms=["diagonal", "frobenius"],
)
def tangent_kernel_of_two_outputs(p: Any, x: Any) -> Any:
    flat, tree = ravel_pytree(p)
    J = jacrev(lambda flat: vmap(lambda q: mlp(tree(flat), q))(x).reshape(-1))(flat)
    singular = jnp.linalg.svd(J, compute_uv=False)
    diagonal, frobenius = jnp.sum(singular**2), jnp.sqrt(jnp.sum(singular**4))
    return diagonal + frobenius, {"diagonal": diagonal, "frobenius": frobenius}


@loss(
    """
def residual(q):
    return laplacian(model(q)[0], q)

def residual_row(q):
    return ravel(grad(residual(q), model.params))

def boundary_row(q):
    return ravel(grad(model(q)[0], model.params))

Kr = mean(sum(vmap(residual_row)(inside)**2, axis=1))
Kb = mean(sum(vmap(boundary_row)(edge)**2, axis=1))
wr = stop_gradient((Kr + Kb) / Kr)
wb = stop_gradient((Kr + Kb) / Kb)
pde = mean(vmap(residual)(inside)**2)
bc = mean(model(edge)**2)
wr * pde + wb * bc + 0.001 * (Kr + Kb)
""",
    models={"model": NET},
    inputs={"inside": normal(4, 2), "edge": normal(3, 2, seed=1)},
    wrt=["params", "edge"],
    terms=["pde", "bc", "Kr", "Kb", "wr", "wb"],
)
def pinn_weights_by_the_tangent_kernel(p: Any, inside: Any, edge: Any) -> Any:
    # Wang, Yu and Perdikaris (2022), section 6: the kernels' traces, of the residual and of the boundary.
    flat, tree = ravel_pytree(p)

    def residual(flat: Any, q: Any) -> Any:
        return jnp.trace(hessian(lambda q: scalar(tree(flat), q))(q))

    def boundary(flat: Any, q: Any) -> Any:
        return scalar(tree(flat), q)

    def energy_and_trace(f: Any, points: Any) -> Any:
        values, rows = (vmap(each, (None, 0))(flat, points) for each in (f, grad(f)))
        return jnp.mean(values**2), jnp.mean(jnp.sum(rows**2, axis=1))

    (pde, Kr), (bc, Kb) = energy_and_trace(residual, inside), energy_and_trace(boundary, edge)
    wr, wb = stop_gradient(1 + Kb / Kr), stop_gradient(1 + Kr / Kb)
    terms = {"pde": pde, "bc": bc, "Kr": Kr, "Kb": Kb, "wr": wr, "wb": wb}
    return wr * pde + wb * bc + 0.001 * (Kr + Kb), terms


@loss(
    """
def log_density(z):
    return -0.5 * z @ precision @ z + model(z)[0]

def k(a, b):
    return exp(-sum((a - b)**2) / (2 * h**2))

def pull(a, b):
    return k(a, b) * grad(log_density(a), a) + grad(k(a, b), a)

field = mean(vmap(vmap(pull, in_axes=(0, None)), in_axes=(None, 0))(particles, particles), axis=1)
-sum(stop_gradient(field) * particles)
""",
    models={"model": NET},
    inputs={"particles": normal(5, 2), "precision": np.array([[1.0, 0.2], [0.2, 2.0]]), "h": 0.8},
    wrt=["particles"],
)
def stein_variational_gradient(p: Any, particles: Any, precision: Any, h: Any) -> Any:
    # phi(b) = mean_a k(a, b) grad log p(a) + grad_a k(a, b), with grad_a k = (b - a) / h^2 k.
    score = -particles @ precision.T + vmap(grad(lambda z: scalar(p, z)))(particles)
    away = particles[None] - particles[:, None]
    K = jnp.exp(-jnp.sum(away**2, axis=2) / (2 * h**2))
    field = (K.T @ score + jnp.einsum("ab,abi->bi", K, away) / h**2) / len(particles)
    return -jnp.sum(stop_gradient(field) * particles), {}


@loss(
    """
def k(a, b):
    return (1 + sum((a - b)**2))**-0.5

def stein(a, b):
    sa, sb = score(a), score(b)
    cross = trace(jacobian(grad(k(a, b), a), b))
    return k(a, b) * dot(sa, sb) + dot(sa, grad(k(a, b), b)) + dot(sb, grad(k(a, b), a)) + cross

mean(vmap(vmap(stein, in_axes=(None, 0)), in_axes=(0, None))(x, x))
""",
    models={"score": mlp_json(2, 4, 2)},
    inputs={"x": normal(4, 2)},
    wrt=["params", "x"],
)
def kernelised_stein_discrepancy(p: Any, x: Any) -> Any:
    # Inverse multiquadric k = q^-1/2, q = 1 + |r|^2, r = a - b: k_a = -r q^-3/2, k_b = r q^-3/2,
    # and tr k_ab = n q^-3/2 - 3 |r|^2 q^-5/2.
    s = vmap(lambda x: mlp(p, x))(x)
    r = x[:, None] - x[None]
    q = 1 + jnp.sum(r**2, axis=2)
    cross = 2 * q**-1.5 - 3 * (q - 1) * q**-2.5
    mixed = jnp.einsum("aj,abj->ab", s, r) - jnp.einsum("bj,abj->ab", s, r)
    return jnp.mean(s @ s.T / jnp.sqrt(q) + mixed * q**-1.5 + cross), {}


@loss(
    """
def k(a, b):
    return exp(-0.5 * sum((a - b)**2) / exp(2 * log_scale))

def block(a, b):
    top = concat([stack([k(a, b)]), grad(k(a, b), b)])
    bottom = concat([grad(k(a, b), a)[:, None], jacobian(grad(k(a, b), a), b)], axis=1)
    return concat([top[None, :], bottom])

blocks = vmap(vmap(block, in_axes=(None, 0)), in_axes=(0, None))(x, x)
n = 3 * x.shape[0]
K = reshape(transpose(blocks, (0, 2, 1, 3)), (n, n)) + noise * eye(n)
L = cholesky(K)
0.5 * dot(seen, solve(K, seen)) + sum(log(diag(L)))
""",
    inputs={"x": normal(3, 2), "seen": normal(9, seed=1), "log_scale": 0.1, "noise": 0.1},
    wrt=["x", "log_scale", "noise", "seen"],
)
def gaussian_process_that_sees_slopes(x: Any, seen: Any, log_scale: Any, noise: Any) -> Any:
    # cov(u, u_b) = k r / s^2, cov(u_a, u) = -k r / s^2, cov(u_a, u_b) = k (1 / s^2 - r r' / s^4), r = a - b.
    s2 = jnp.exp(2 * log_scale)

    def block(a: Any, b: Any) -> Any:
        r = (a - b) / s2
        inside = jnp.eye(2, dtype=r.dtype) / s2 - jnp.outer(r, r)
        one = jnp.ones((1, 1), r.dtype)
        return jnp.exp(-s2 * r @ r / 2) * jnp.block([[one, r[None]], [-r[:, None], inside]])

    blocks = vmap(vmap(block, (None, 0)), (0, None))(x, x)
    K = jnp.concatenate([jnp.concatenate(list(row), axis=1) for row in blocks])
    K = K + noise * jnp.eye(9, dtype=x.dtype)
    eigenvalues, vectors = jnp.linalg.eigh((K + K.T) / 2)
    return jnp.sum((vectors.T @ seen) ** 2 / eigenvalues + jnp.log(eigenvalues)) / 2, {}


@loss(
    """
K = batched_jacobian(model(x), x)
metric = einsum("nki,nkj->nij", K, K)
pairs = x[:, None, :] - x[None, :, :]
apart = einsum("abi,aij,abj->ab", pairs, metric, pairs)
mean(log1p(apart))
""",
    models={"model": mlp_json(2, 4, 3)},
    inputs={"x": normal(4, 2)},
    wrt=["params", "x"],
)
def distances_in_a_pulled_back_metric(p: Any, x: Any) -> Any:
    def apart(a: Any, b: Any) -> Any:
        return jnp.sum((jacfwd(mlp, 1)(p, a) @ (a - b)) ** 2)

    return jnp.mean(jnp.log(1 + vmap(vmap(apart, (None, 0)), (0, None))(x, x))), {}
