"""Learned physics: Hamiltonians, Lagrangians, forces and stresses, stability and safety of dynamics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import grad, hessian, jacfwd, vmap
from networks import mlp, mlp_json, scalar
from reference import Case, check, loss, normal

import nablad

SOFT = mlp_json(4, 6, 1, activation="softplus")


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


@loss(
    """
def flow(z):
    slope = grad(model(z)[0], z)
    return concat([slope[2:], -slope[:2]])

mean((vmap(flow)(z) - dz)**2)
""",
    models={"model": mlp_json(4, 6, 6, 1)},
    inputs={"z": normal(6, 4), "dz": normal(6, 4, seed=1)},
    wrt=["params", "z"],
)
def hamiltonian_network(p: Any, z: Any, dz: Any) -> Any:
    # (q', p') = (H_p, -H_q)
    def hamiltonian(q: Any, momentum: Any) -> Any:
        return scalar(p, jnp.concatenate([q, momentum]))

    q, momentum = z[:, :2], z[:, 2:]
    dq, dp = vmap(grad(hamiltonian, 1))(q, momentum), -vmap(grad(hamiltonian))(q, momentum)
    return (jnp.mean((dq - dz[:, :2]) ** 2) + jnp.mean((dp - dz[:, 2:]) ** 2)) / 2, {}


@loss(
    """
def leapfrog(z):
    def H(q, p):
        return sum(model(concat([q, p])))
    def force(q, p):
        return -grad(H(q, p), q)
    def velocity(q, p):
        return grad(H(q, p), p)
    def step(i, carry):
        q, p = carry
        half = p + h / 2 * force(q, p)
        moved = q + h * velocity(q, half)
        return (moved, half + h / 2 * force(moved, half))
    return concat(fori(3, step, (z[:2], z[2:])))

mean((vmap(leapfrog)(z) - later)**2)
""",
    models={"model": mlp_json(4, 6, 1)},
    inputs={"z": normal(4, 4), "later": normal(4, 4, seed=1), "h": 0.2},
    wrt=["params", "h"],
)
def symplectic_rollout(p: Any, z: Any, later: Any, h: Any) -> Any:
    def rollout(z: Any) -> Any:
        q, momentum = z[:2], z[2:]
        H = lambda q, momentum: scalar(p, jnp.concatenate([q, momentum]))  # noqa: E731
        for _ in range(3):
            momentum = momentum - h * grad(H)(q, momentum) / 2
            q = q + h * grad(H, 1)(q, momentum)
            momentum = momentum - h * grad(H)(q, momentum) / 2
        return jnp.concatenate([q, momentum])

    return jnp.mean((vmap(rollout)(z) - later) ** 2), {}


@loss(
    """
def acceleration(q, v):
    L = model(concat([q, v]))[0] + 0.5 * sum(v**2)
    force = grad(L, q) - jvp(grad(L, v), q, v)
    return solve(hessian(L, v), force)

mean((vmap(acceleration)(q, v) - a)**2)
""",
    models={"model": SOFT},
    inputs={"q": normal(4, 2), "v": normal(4, 2, seed=1), "a": normal(4, 2, seed=2)},
    wrt=["params", "q", "v"],
)
def lagrangian_network(p: Any, q: Any, v: Any, a: Any) -> Any:
    # a = L_vv^-1 (L_q - L_qv v), read off the Hessian in (q, v).
    def L(s: Any) -> Any:
        return scalar(p, s, jax.nn.softplus) + s[2:] @ s[2:] / 2

    def acceleration(q: Any, v: Any) -> Any:
        s = jnp.concatenate([q, v])
        H = hessian(L)(s)
        return jnp.linalg.inv(H[2:, 2:]) @ (grad(L)(s)[:2] - H[2:, :2] @ v)

    return jnp.mean((vmap(acceleration)(q, v) - a) ** 2), {}


@loss(
    """
def acceleration(q, v):
    L = 0.5 * v @ M @ v - 0.5 * q @ K @ q + q @ G @ v
    force = grad(L, q) - jvp(grad(L, v), q, v)
    return solve(hessian(L, v), force)

mean(vmap(acceleration)(q, v)**2)
""",
    inputs={
        "q": normal(4, 2),
        "v": normal(4, 2, seed=1),
        "M": np.array([[2.0, 0.3], [0.3, 1.0]]),
        "K": np.array([[1.0, -0.2], [-0.2, 0.5]]),
        "G": normal(2, 2, seed=3),
    },
    wrt=["M", "K", "G", "q"],
)
def euler_lagrange_in_closed_form(q: Any, v: Any, M: Any, K: Any, G: Any) -> Any:
    # M a = G v - K q - G' v with M and K taken symmetric, as the quadratic forms take them.
    S, K = (M + M.T) / 2, (K + K.T) / 2
    a = jnp.linalg.solve(S, (G - G.T) @ v.T - K @ q.T)
    return jnp.mean(a**2), {}


@loss(
    """
def energy(positions, strain):
    moved = positions + positions @ (strain + strain.T) / 2
    apart = moved[pairs[:, 0]] - moved[pairs[:, 1]]
    return sum(model(norm(apart, axis=1, keepdims=True)))

zero = zeros((3, 3))
E = energy(positions, zero)
F = -grad(E, positions)
stress = grad(E, zero) / volume
energy_error = (E - E_seen)**2
force_error = mean((F - F_seen)**2)
stress_error = mean((stress - stress_seen)**2)
energy_error + 10 * force_error + 100 * stress_error
""",
    models={"model": mlp_json(1, 6, 1, activation="silu")},
    inputs={
        "positions": normal(4, 3),
        "pairs": np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]),
        "volume": 8.0,
        "E_seen": -1.0,
        "F_seen": normal(4, 3, seed=1),
        "stress_seen": normal(3, 3, seed=2),
    },
    wrt=["params", "positions"],
    terms=["energy_error", "force_error", "stress_error"],
)
def energy_forces_and_stress(
    p: Any, positions: Any, pairs: Any, volume: Any, E_seen: Any, F_seen: Any, stress_seen: Any
) -> tuple[Any, dict[str, Any]]:
    # For pair potentials: F_i = -sum_j phi'(r) e_ij, and the virial sum phi'(r) e_ij (x) d_ij.
    silu = lambda x: x * jax.nn.sigmoid(x)  # noqa: E731
    phi = lambda r: scalar(p, r[None], silu)  # noqa: E731
    apart = positions[pairs[:, 0]] - positions[pairs[:, 1]]
    r = jnp.sqrt(jnp.sum(apart**2, axis=1))
    pull = vmap(grad(phi))(r)[:, None] * apart / r[:, None]
    F = jnp.zeros_like(positions).at[pairs[:, 0]].add(-pull).at[pairs[:, 1]].add(pull)
    energy_error = (jnp.sum(vmap(phi)(r)) - E_seen) ** 2
    force_error = jnp.mean((F - F_seen) ** 2)
    stress_error = jnp.mean((pull.T @ apart / volume - stress_seen) ** 2)
    terms = {"energy_error": energy_error, "force_error": force_error, "stress_error": stress_error}
    return energy_error + 10 * force_error + 100 * stress_error, terms


@loss(
    """
def energy(R):
    between = R[:, None, :] - R[None, :, :]
    closeness = exp(-sum(between**2, axis=2)) * (1 - eye(R.shape[0]))
    density = sum(closeness, axis=1)
    return sum(model(density[:, None]))

def forces(R):
    return -grad(energy(R), R)

size = norm(vmap(forces)(frames) - seen, axis=2)
mean(where(size < delta, 0.5 * size**2, delta * (size - 0.5 * delta)))
""",
    models={"model": mlp_json(1, 6, 1)},
    inputs={"frames": normal(2, 4, 3), "seen": 0.3 * normal(2, 4, 3, seed=1), "delta": 0.5},
    wrt=["params", "frames", "delta"],
)
def many_body_forces_with_a_huber_loss(p: Any, frames: Any, seen: Any, delta: Any) -> Any:
    def energy(R: Any) -> Any:
        total = jnp.zeros((), R.dtype)
        for i in range(4):
            others = [jnp.exp(-jnp.sum((R[i] - R[j]) ** 2)) for j in range(4) if j != i]
            total += scalar(p, sum(others)[None])
        return total

    error = jnp.linalg.norm(vmap(grad(energy))(frames) + seen, axis=2)
    near = jnp.minimum(error, delta)
    return jnp.mean(near * (error - near / 2)), {}


@loss(
    """
def lie_derivative(x):
    V = sum((lyapunov(x) - lyapunov(zeros_like(x)))**2) + 0.1 * sum(x**2)
    f = A @ x + controller(x)
    return stack([V, jvp(V, x, f)])

rates = vmap(lie_derivative)(x)
mean(relu(rates[:, 1] + alpha * rates[:, 0])**2)
""",
    models={"lyapunov": mlp_json(2, 5, 3), "controller": mlp_json(2, 4, 2)},
    inputs={"x": normal(6, 2), "A": normal(2, 2, seed=1), "alpha": 0.5},
    wrt=["params", "A", "alpha", "x"],
)
def lyapunov_function_of_a_learned_controller(p: Any, x: Any, A: Any, alpha: Any) -> Any:
    def violation(x: Any) -> Any:
        V = lambda x: (  # noqa: E731
            jnp.sum((mlp(p["lyapunov"], x) - mlp(p["lyapunov"], jnp.zeros_like(x))) ** 2) + 0.1 * x @ x
        )
        return grad(V)(x) @ (A @ x + mlp(p["controller"], x)) + alpha * V(x)

    return jnp.mean(jnp.maximum(vmap(violation)(x), 0) ** 2), {}


@loss(
    """
def condition(x):
    b = barrier(x)[0]
    slope = grad(b, x)
    drift = stack([x[1], -sin(x[0])])
    return dot(slope, drift) + slope[1] * policy(x)[0] + gamma * b

descent = mean(relu(margin - vmap(condition)(x)))
safe = mean(relu(margin - barrier(inside)[:, 0]))
unsafe = mean(relu(margin + barrier(outside)[:, 0]))
descent + safe + unsafe
""",
    models={"barrier": mlp_json(2, 6, 1), "policy": mlp_json(2, 4, 1)},
    inputs={
        "x": normal(6, 2),
        "inside": 0.3 * normal(4, 2, seed=1),
        "outside": 3 + normal(4, 2, seed=2),
        "gamma": 1.0,
        "margin": 0.1,
    },
    wrt=["barrier.params", "policy.params", "gamma", "margin"],
    terms=["descent", "safe", "unsafe"],
)
def control_barrier_function(p: Any, x: Any, inside: Any, outside: Any, gamma: Any, margin: Any) -> Any:
    B = lambda x: scalar(p["barrier"], x)  # noqa: E731

    def hinge(v: Any) -> Any:
        return jnp.mean(jnp.maximum(margin - v, 0))

    def condition(x: Any) -> Any:
        # A pendulum, the torque on its velocity.
        velocity = jnp.stack([x[1], scalar(p["policy"], x) - jnp.sin(x[0])])
        return grad(B)(x) @ velocity + gamma * B(x)

    descent, safe, unsafe = hinge(vmap(condition)(x)), hinge(vmap(B)(inside)), hinge(-vmap(B)(outside))
    return descent + safe + unsafe, {"descent": descent, "safe": safe, "unsafe": unsafe}


@loss(
    """
def contraction(x):
    f = dynamics(x)
    J = jacobian(f, x)
    theta = reshape(metric(x), (2, 2))
    M = theta.T @ theta + 0.1 * eye(2)
    Mdot = jvp(M, x, f)
    return eigvalsh(Mdot + M @ J + J.T @ M + 2 * rate * M)

mean(sum(relu(vmap(contraction)(x)), axis=1))
""",
    models={"dynamics": mlp_json(2, 5, 2), "metric": mlp_json(2, 4, 4)},
    inputs={"x": normal(5, 2), "rate": 0.3},
    wrt=["params", "rate"],
)
def contraction_metric(p: Any, x: Any, rate: Any) -> Any:
    def M(x: Any) -> Any:
        theta = mlp(p["metric"], x).reshape(2, 2)
        return theta.T @ theta + 0.1 * jnp.eye(2, dtype=x.dtype)

    def violation(x: Any) -> Any:
        J = jacfwd(mlp, 1)(p["dynamics"], x)
        S = jacfwd(M)(x) @ mlp(p["dynamics"], x) + M(x) @ J + J.T @ M(x) + 2 * rate * M(x)
        # The eigenvalues of a symmetric matrix [[a, b], [b, c]] are (a + c +- sqrt((a - c)^2 + 4 b^2)) / 2.
        root = jnp.sqrt((S[0, 0] - S[1, 1]) ** 2 + 4 * S[0, 1] ** 2)
        return sum(jnp.maximum(S[0, 0] + S[1, 1] + way * root, 0) / 2 for way in (-1, 1))

    return jnp.mean(vmap(violation)(x)), {}


@loss(
    """
def stress(F):
    C = F.T @ F
    J = det(F)
    invariants = stack([trace(C) - 2, J - 1, log(J)])
    W = model(invariants)[0] + 0.5 * (J - 1)**2
    P = grad(W, F)
    return stack([P, P @ F.T / J])

pairs = vmap(stress)(eye(2) + 0.2 * strain)
first = mean((pairs[:, 0] - seen)**2)
skew = mean((pairs[:, 1] - transpose(pairs[:, 1], (0, 2, 1)))**2)
first + skew
""",
    models={"model": mlp_json(3, 6, 1, activation="softplus")},
    inputs={"strain": normal(5, 2, 2), "seen": normal(5, 2, 2, seed=1)},
    wrt=["params", "strain"],
    terms=["first"],
)
def hyperelastic_energy(p: Any, strain: Any, seen: Any) -> Any:
    # dtr(F'F)/dF = 2 F and dJ/dF = J F^-T; the Cauchy stress of an isotropic energy is symmetric.
    def stress(F: Any) -> Any:
        J, cofactor = jnp.linalg.det(F), jnp.linalg.det(F) * jnp.linalg.inv(F).T
        invariants = jnp.stack([jnp.sum(F**2) - 2, J - 1, jnp.log(J)])
        w = grad(lambda i: scalar(p, i, jax.nn.softplus))(invariants)
        return 2 * w[0] * F + (w[1] + w[2] / J + J - 1) * cofactor

    P = vmap(stress)(jnp.eye(2, dtype=strain.dtype) + 0.2 * strain)
    first = jnp.mean((P - seen) ** 2)
    return first, {"first": first}
