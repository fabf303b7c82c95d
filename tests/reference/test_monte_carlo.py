"""Sampling and estimation: wave functions, chains, posteriors, score functions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import grad, hessian, vmap
from jax.lax import stop_gradient
from networks import mlp_json, mlp_tree, scalar
from reference import Case, check, loss, normal

import nablad


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


@loss(
    """
def log_psi(r):
    return model(r)[0] - 0.5 * sum(r**2)

def local_energy(r):
    u = log_psi(r)
    kinetic = -0.5 * (laplacian(u, r) + sum(grad(u, r)**2))
    charge = 1 / norm(r[:3] - r[3:], eps=0.1)
    return kinetic + 0.5 * sum(r**2) + charge

E = stop_gradient(vmap(local_energy)(walkers))
energy = mean(E)
2 * mean((E - energy) * vmap(log_psi)(walkers))
""",
    models={"model": mlp_json(6, 6, 1)},
    inputs={"walkers": normal(6, 6)},
    wrt=["params"],
    terms=["energy"],
)
def variational_monte_carlo(p: Any, walkers: Any) -> Any:
    # H psi / psi for psi = exp(f): the Laplacian is taken of psi itself, not of its logarithm.
    def log_psi(p: Any, r: Any) -> Any:
        return scalar(p, r) - r @ r / 2

    def local_energy(r: Any) -> Any:
        psi = lambda r: jnp.exp(log_psi(p, r))  # noqa: E731
        repulsion = 1 / jnp.sqrt(jnp.sum((r[:3] - r[3:]) ** 2) + 0.01)
        return -jnp.trace(hessian(psi)(r)) / (2 * psi(r)) + r @ r / 2 + repulsion

    E = stop_gradient(vmap(local_energy)(walkers))
    return 2 * jnp.mean((E - jnp.mean(E)) * vmap(log_psi, (None, 0))(p, walkers)), {"energy": jnp.mean(E)}


@loss(
    """
def local_energy(r):
    u = -a * sum(r**2)
    return -0.5 * (laplacian(u, r) + sum(grad(u, r)**2)) + 0.5 * sum(r**2)

E = vmap(local_energy)(walkers)
var(E) + mean(E)
""",
    inputs={"walkers": normal(6, 3), "a": 0.3},
    wrt=["a", "walkers"],
)
def variance_of_the_energy_of_an_oscillator(walkers: Any, a: Any) -> Any:
    # E_loc = 3 a + (1/2 - 2 a^2) |r|^2 in three dimensions; exact, and without variance, at a = 1/2.
    size = jnp.sum(walkers**2, axis=1)
    slope = 0.5 - 2 * a**2
    return slope**2 * jnp.var(size) + 3 * a + slope * jnp.mean(size), {}


DATA = {"x": normal(6, 2), "y": normal(6, seed=1)}


@loss(
    """
noise = exp(log_noise)
misfit = sum((model(x)[:, 0] - y)**2) / (2 * noise**2) + y.shape[0] * log_noise
prior = norm(model.params)**2 / (2 * exp(2 * log_prior)) + ravel(model.params).shape[0] * log_prior
misfit + prior
""",
    models={"model": mlp_json(2, 4, 1)},
    inputs={**DATA, "log_noise": -0.5, "log_prior": 0.2},
    wrt=["params", "log_noise", "log_prior"],
    terms=["misfit", "prior"],
)
def posterior_of_a_network(p: Any, x: Any, y: Any, log_noise: Any, log_prior: Any) -> Any:
    # -log N(y | f, noise) - log N(theta | 0, scale), without their constants.
    normal_pdf = jax.scipy.stats.norm.logpdf
    constant = jnp.log(2 * jnp.pi) / 2
    f = vmap(scalar, (None, 0))(p, x)
    misfit = -jnp.sum(normal_pdf(y, f, jnp.exp(log_noise)) + constant)
    prior = -sum(jnp.sum(normal_pdf(leaf, 0.0, jnp.exp(log_prior)) + constant) for leaf in p.values())
    return misfit + prior, {"misfit": misfit, "prior": prior}


@loss(
    """
def potential(p):
    return 0.5 * sum((model(x, params=p)[:, 0] - y)**2) + 0.5 * norm(p)**2

def leapfrog(i, carry):
    q, momentum = carry
    half = momentum - step / 2 * grad(potential(q), q)
    moved = q + step * half
    return (moved, half - step / 2 * grad(potential(moved), moved))

last, momentum1 = fori(2, leapfrog, (model.params, momentum0))
before = potential(model.params) + 0.5 * norm(momentum0)**2
after = potential(last) + 0.5 * norm(momentum1)**2
acceptance = minimum(1, exp(before - after))
jump = norm(last - model.params)**2
-acceptance * jump
""",
    models={"model": mlp_json(2, 3, 1)},
    inputs={**DATA, "momentum0": mlp_tree(2, 3, 1), "step": 0.1},
    wrt=["step", "params", "momentum0"],
    terms=["acceptance", "jump"],
)
def hamiltonian_monte_carlo_step_size(p: Any, x: Any, y: Any, momentum0: Any, step: Any) -> Any:
    # The expected squared jump of a proposal, as a function of the step size; kick, drift, kick.
    def U(q: Any) -> Any:
        error = vmap(scalar, (None, 0))(q, x) - y
        return jnp.sum(error**2) / 2 + sum(jnp.sum(leaf**2) for leaf in q.values()) / 2

    def axpy(a: Any, x: Any, y: Any) -> Any:
        return jax.tree.map(lambda x, y: a * x + y, x, y)

    def energy(q: Any, m: Any) -> Any:
        return U(q) + sum(jnp.sum(leaf**2) for leaf in m.values()) / 2

    q, m = p, axpy(-step / 2, grad(U)(p), momentum0)
    for kick in (1, 0.5):
        q = axpy(step, m, q)
        m = axpy(-kick * step, grad(U)(q), m)
    acceptance = jnp.exp(jnp.minimum(energy(p, momentum0) - energy(q, m), 0))
    jump = sum(jnp.sum((q[name] - p[name]) ** 2) for name in p)
    return -acceptance * jump, {"acceptance": acceptance, "jump": jump}


@loss(
    """
def log_density(z):
    return model(z)[0] - 0.25 * sum(z**4)

def chain(z, noise):
    def step(z, e):
        moved = z + tau * grad(log_density(z), z) + sqrt(2 * tau) * e
        return (moved, log_density(moved))
    last, seen = scan(step, z, noise)
    return stack([log_density(last), mean(seen)])

ends = mean(vmap(chain)(start, noise), axis=0)
contrast = mean(vmap(log_density)(start)) - ends[0]
contrast - 0.1 * ends[1]
""",
    models={"model": mlp_json(2, 5, 1)},
    inputs={"start": normal(4, 2), "noise": normal(4, 3, 2, seed=1), "tau": 0.05},
    wrt=["params", "tau", "start"],
    terms=["contrast"],
)
def langevin_chain_with_its_gradient(p: Any, start: Any, noise: Any, tau: Any) -> Any:
    log_density = vmap(lambda z: scalar(p, z) - jnp.sum(z**4) / 4)
    score = vmap(lambda z: grad(lambda z: scalar(p, z))(z) - z**3)
    z, seen = start, []
    for k in range(3):
        z = z + tau * score(z) + jnp.sqrt(2 * tau) * noise[:, k]
        seen.append(jnp.mean(log_density(z)))
    contrast = jnp.mean(log_density(start)) - seen[-1]
    return contrast - 0.1 * sum(seen) / 3, {"contrast": contrast}


@loss(
    """
mu = policy(state)
action = stop_gradient(mu + sigma * noise)
log_prob = -0.5 * sum((action - mu)**2, axis=1) / sigma**2 - 2 * log(sigma)
advantage = stop_gradient(-sum(action**2, axis=1) - value(state)[:, 0])
surrogate = -mean(log_prob * advantage)
critic = mean((value(state)[:, 0] + sum(action**2, axis=1))**2)
surrogate + 0.5 * critic
""",
    models={"policy": mlp_json(3, 4, 2), "value": mlp_json(3, 4, 1)},
    inputs={"state": normal(6, 3), "noise": normal(6, 2, seed=1), "sigma": 0.4},
    wrt=["policy.params", "value.params", "sigma"],
    terms=["surrogate", "critic"],
)
def score_function_with_a_baseline(p: Any, state: Any, noise: Any, sigma: Any) -> Any:
    W1, b1, W2, b2 = (p["policy"][f"layer_{i}.{leaf}"] for i in (1, 2) for leaf in ("weight", "bias"))
    mu = jnp.tanh(state @ W1.T + b1) @ W2.T + b2
    action = stop_gradient(mu + sigma * noise)
    log_prob = jnp.sum(-(((action - mu) / sigma) ** 2) / 2 - jnp.log(sigma), axis=1)
    value = vmap(lambda s: scalar(p["value"], s))(state)
    reward = -jnp.sum(action**2, axis=1)
    surrogate = jnp.mean(-log_prob * stop_gradient(reward - value))
    critic = jnp.mean((reward - value) ** 2)
    return surrogate + critic / 2, {"surrogate": surrogate, "critic": critic}


@loss(
    """
def generator(x):
    u = model(x)[0]
    return laplacian(u, x) - dot(x, grad(u, x))

residual = h - vmap(generator)(x)
var(residual) + mean(residual)**2
""",
    models={"model": mlp_json(2, 5, 1)},
    inputs={"x": normal(6, 2), "h": normal(6, seed=1)},
    wrt=["params", "h"],
)
def control_variate_by_a_stein_operator(p: Any, x: Any, h: Any) -> Any:
    # The Langevin generator of a standard normal, lap u - x . grad u, has mean zero.
    def generator(x: Any) -> Any:
        H = hessian(lambda x: scalar(p, x))(x)
        return H[0, 0] + H[1, 1] - x @ grad(lambda x: scalar(p, x))(x)

    return jnp.mean((h - vmap(generator)(x)) ** 2), {}
