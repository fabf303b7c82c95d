"""Derivatives in the parameters inside the loss: curvature, adversarial weights, meta-learning, steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import grad, hessian, jacrev, vmap
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient
from networks import mlp, mlp_json, mlp_tree, scalar
from reference import Case, check, loss, normal

import nablad

NET = mlp_json(2, 4, 1)
CLASSIFIER = mlp_json(2, 4, 3)
DATA = {"x": normal(6, 2), "y": normal(6, seed=1)}
LABELLED = {"x": normal(6, 2), "label": np.array([0, 2, 1, 1, 0, 2])}
LINEAR = {"layers": [{"dense": [3, 1], "bias": False}]}


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


def fit(p: Any, x: Any, y: Any) -> Any:
    return jnp.mean((vmap(scalar, (None, 0))(p, x) - y) ** 2)


def curvature(p: Any, x: Any, y: Any) -> Any:
    """The Hessian of the fit, a matrix in the order that JAX gives the leaves."""
    flat, tree = ravel_pytree(p)
    return hessian(lambda flat: fit(tree(flat), x, y))(flat)


def inner(a: Any, b: Any) -> Any:
    """The inner product of two trees."""
    return sum(jnp.vdot(a[name], b[name]) for name in a)


def moved(p: Any, rate: Any, g: Any) -> Any:
    return {name: p[name] + rate * g[name] for name in p}


@loss(
    """
fit = mean((model(x)[:, 0] - y)**2)
Hv = hvp(fit, model.params, v)
fit + 0.5 * dot(v, Hv) + 0.1 * norm(Hv)**2
""",
    models={"model": NET},
    inputs={**DATA, "v": mlp_tree(2, 4, 1)},
    wrt=["params", "v", "y"],
    terms=["fit"],
)
def hessian_vector_product(p: Any, x: Any, y: Any, v: Any) -> Any:
    H, (flat, _) = curvature(p, x, y), ravel_pytree(v)
    f = fit(p, x, y)
    return f + flat @ H @ flat / 2 + 0.1 * jnp.sum((H @ flat) ** 2), {"fit": f}


@loss(
    """
def loss(x, y):
    return mean((model(x)[:, 0] - y)**2)

train = loss(x, y)
test_gradient = grad(loss(xt, yt), model.params)
train_gradient = grad(loss(x[:1], y[:1]), model.params)
n = ravel(model.params).shape[0]
H = hessian(train, model.params) + damping * eye(n)
-dot(ravel(test_gradient), solve(H, ravel(train_gradient)))
""",
    models={"model": NET},
    inputs={**DATA, "xt": normal(3, 2, seed=2), "yt": normal(3, seed=3), "damping": 1.5},
    wrt=["damping", "y", "yt"],
)
def influence_of_an_example(p: Any, x: Any, y: Any, xt: Any, yt: Any, damping: Any) -> Any:
    flat = lambda g: ravel_pytree(g)[0]  # noqa: E731
    H = curvature(p, x, y)
    H = H + damping * jnp.eye(len(H), dtype=H.dtype)
    return -flat(grad(fit)(p, xt, yt)) @ jnp.linalg.inv(H) @ flat(grad(fit)(p, x[:1], y[:1])), {}


@loss(
    """
fit = mean((model(x)[:, 0] - y)**2)
g = grad(fit, model.params)
first = dot(probe_1, hvp(fit, model.params, probe_1))
second = dot(ravel(probe_2), jvp(ravel(g), model.params, probe_2))
estimate = 0.5 * (first + second)
exact = trace(hessian(fit, model.params))
estimate + exact
""",
    models={"model": NET},
    inputs={**DATA, "probe_1": mlp_tree(2, 4, 1, seed=5), "probe_2": mlp_tree(2, 4, 1, seed=6)},
    wrt=["params", "x"],
    terms=["estimate", "exact"],
)
def hessian_trace(p: Any, x: Any, y: Any, probe_1: Any, probe_2: Any) -> Any:
    H = curvature(p, x, y)
    exact = jnp.trace(H)
    estimate = sum(v @ H @ v for v in (ravel_pytree(probe)[0] for probe in (probe_1, probe_2))) / 2
    return estimate + exact, {"estimate": estimate, "exact": exact}


@loss(
    """
g = grad(mean((model(x)[:, 0] - y)**2), model.params)
norm(jvp(g, model.params, v))**2
""",
    models={"model": NET},
    inputs={**DATA, "v": mlp_tree(2, 4, 1)},
    wrt=["params"],
)
def hessian_product_as_a_tangent_of_the_gradient(p: Any, x: Any, y: Any, v: Any) -> Any:
    return jnp.sum((curvature(p, x, y) @ ravel_pytree(v)[0]) ** 2), {}


@loss(
    """
logits = model(x)
Jv = jvp(logits, model.params, v)
p = softmax(logits)
HJv = p * Jv - p * sum(p * Jv, axis=1, keepdims=True)
Gv = vjp(logits, model.params, HJv / x.shape[0])
quadratic = dot(v, Gv)
quadratic + norm(Gv)**2
""",
    models={"model": CLASSIFIER},
    inputs={"x": normal(5, 2), "v": mlp_tree(2, 4, 3)},
    wrt=["params", "v", "x"],
    terms=["quadratic"],
)
def generalised_gauss_newton_product(p: Any, x: Any, v: Any) -> Any:
    # G = mean J' (diag(q) - q q') J, built as a matrix; diag(q) - q q' is the Hessian of log sum exp.
    flat, tree = ravel_pytree(p)
    v, _ = ravel_pytree(v)

    def one(x: Any) -> Any:
        logits = lambda flat: mlp(tree(flat), x)  # noqa: E731
        J = jacrev(logits)(flat)
        return J.T @ hessian(lambda z: jnp.log(jnp.sum(jnp.exp(z))))(logits(flat)) @ J

    G = jnp.mean(vmap(one)(x), axis=0)
    return v @ G @ v + jnp.sum((G @ v) ** 2), {"quadratic": v @ G @ v}


@loss(
    """
def log_likelihood(x, label):
    return log_softmax(model(x))[label]

def score(x, label):
    return ravel(grad(log_likelihood(x, label), model.params))

scores = vmap(score)(x, label)
F = scores.T @ scores / x.shape[0]
natural = solve(F + 0.1 * eye(F.shape[0]), mean(scores, axis=0))
length = dot(mean(scores, axis=0), natural)
drift = trace(F)
length + drift
""",
    models={"model": CLASSIFIER},
    inputs=LABELLED,
    wrt=["params", "x"],
    terms=["length", "drift"],
)
def empirical_fisher_and_natural_gradient(p: Any, x: Any, label: Any) -> Any:
    # g' (S'S/n + 0.1)^-1 g, through the n by n matrix S S' (Woodbury), g = S' 1/n.
    flat, tree = ravel_pytree(p)

    def log_likelihood(flat: Any) -> Any:
        logits = vmap(lambda x: mlp(tree(flat), x))(x)
        chances = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=1, keepdims=True)
        return jnp.log(jnp.sum(chances * jax.nn.one_hot(label, 3, dtype=x.dtype), axis=1))

    S = jacrev(log_likelihood)(flat)
    n = len(S)
    gram = S @ S.T
    g = jnp.mean(S, axis=0)
    inverse = jnp.linalg.solve(gram / n + 0.1 * jnp.eye(n, dtype=S.dtype), S @ g) / n
    length, drift = (g @ g - (S @ g) @ inverse) / 0.1, jnp.trace(gram) / n
    return length + drift, {"length": length, "drift": drift}


@loss(
    """
fit = mean((model(x)[:, 0] - y)**2)
def step(i, v):
    w = hvp(fit, model.params, v)
    return w / norm(w)

v = stop_gradient(fori(300, step, v0))
sharpness = dot(v, hvp(fit, model.params, v))
fit + sharpness
""",
    models={"model": NET},
    inputs={**DATA, "v0": mlp_tree(2, 4, 1)},
    wrt=["params", "y"],
    terms=["fit", "sharpness"],
)
def sharpness_by_power_iteration(p: Any, x: Any, y: Any, v0: Any) -> Any:
    sharpness = jnp.linalg.eigvalsh(curvature(p, x, y))[-1]
    return fit(p, x, y) + sharpness, {"fit": fit(p, x, y), "sharpness": sharpness}


@loss(
    """
def loss(p):
    return mean((model(x, params=p)[:, 0] - y)**2)

g = grad(loss(model.params), model.params)
uphill = model.params + stop_gradient(rho / norm(g) * g)
sharp = loss(uphill)
sharp
""",
    models={"model": NET},
    inputs={**DATA, "rho": 0.05},
    wrt=["params", "y"],
    terms=["sharp"],
)
def sharpness_aware_minimisation(p: Any, x: Any, y: Any, rho: Any) -> Any:
    g = grad(fit)(p, x, y)
    step = stop_gradient({name: rho * g[name] / jnp.sqrt(inner(g, g)) for name in g})
    sharp = fit(moved(p, 1, step), x, y)
    return sharp, {"sharp": sharp}


@loss(
    """
def loss(p):
    return mean((model(x, params=p)[:, 0] - y)**2)

fit = loss(model.params)
size = norm(grad(fit, model.params))
fit + weight * size
""",
    models={"model": NET},
    inputs={**DATA, "weight": 0.3},
    wrt=["params", "weight", "x"],
    terms=["fit", "size"],
)
def gradient_norm_penalty(p: Any, x: Any, y: Any, weight: Any) -> Any:
    g = grad(fit)(p, x, y)
    size = jnp.sqrt(inner(g, g))
    return fit(p, x, y) + weight * size, {"fit": fit(p, x, y), "size": size}


TASKS = {
    "xs": normal(3, 4, 2),
    "ys": normal(3, 4, seed=1),
    "xq": normal(3, 5, 2, seed=2),
    "yq": normal(3, 5, seed=3),
    "rate": 0.1,
}


@loss(
    """
def loss(p, x, y):
    return mean((model(x, params=p)[:, 0] - y)**2)

def task(xs, ys, xq, yq):
    def step(i, p):
        return p - rate * grad(loss(p, xs, ys), p)
    return loss(fori(3, step, model.params), xq, yq)

mean(vmap(task)(xs, ys, xq, yq))
""",
    models={"model": NET},
    inputs=TASKS,
    wrt=["params", "rate", "ys"],
)
def maml_with_three_inner_steps(p: Any, xs: Any, ys: Any, xq: Any, yq: Any, rate: Any) -> Any:
    def task(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        adapted = p
        for _ in range(3):
            adapted = moved(adapted, -rate, grad(fit)(adapted, xs, ys))
        return fit(adapted, xq, yq)

    return jnp.mean(vmap(task)(xs, ys, xq, yq)), {}


@loss(
    """
def loss(w, x, y):
    return 0.5 * mean((x @ w - y)**2)

def task(xs, ys, xq, yq):
    def step(i, w):
        return w - rate * grad(loss(w, xs, ys), w)
    return loss(fori(3, step, start), xq, yq)

mean(vmap(task)(xs, ys, xq, yq))
""",
    inputs={**TASKS, "start": normal(2, seed=4)},
    wrt=["start", "rate"],
)
def maml_on_a_linear_model(xs: Any, ys: Any, xq: Any, yq: Any, rate: Any, start: Any) -> Any:
    # Gradient descent on a quadratic: w_k - w* = (1 - rate C)^k (w_0 - w*), with C w* = X'y / n.
    def task(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        C, w = xs.T @ xs / len(xs), jnp.linalg.solve(xs.T @ xs, xs.T @ ys)
        decay = jnp.eye(2, dtype=C.dtype) - rate * C
        return jnp.mean((xq @ (w + decay @ decay @ decay @ (start - w)) - yq) ** 2) / 2

    return jnp.mean(vmap(task)(xs, ys, xq, yq)), {}


@loss(
    """
def loss(p, x, y):
    return mean((model(x, params=p)[:, 0] - y)**2)

def adapt(xs, ys):
    def step(i, p):
        return p - rate * (grad(loss(p, xs, ys), p) + pull * (p - model.params))
    return fori(2, step, model.params)

first = adapt(xs[0], ys[0])
reptile = 0.5 * norm(model.params - stop_gradient(first))**2
query = loss(first, xq[0], yq[0])
reptile + query
""",
    models={"model": NET},
    inputs={**TASKS, "pull": 0.5},
    wrt=["params", "pull", "rate"],
    terms=["reptile", "query"],
)
def implicit_maml_and_reptile(p: Any, xs: Any, ys: Any, xq: Any, yq: Any, rate: Any, pull: Any) -> Any:
    # Proximal inner steps; Reptile's gradient is the way back from the (fixed) adapted parameters.
    adapted = p
    for _ in range(2):
        proximal = lambda q: fit(q, xs[0], ys[0]) + pull / 2 * inner(moved(q, -1, p), moved(q, -1, p))  # noqa: E731
        adapted = moved(adapted, -rate, grad(proximal)(adapted))
    away = moved(p, -1, stop_gradient(adapted))
    reptile, query = inner(away, away) / 2, fit(adapted, xq[0], yq[0])
    return reptile + query, {"reptile": reptile, "query": query}


@loss(
    """
def residual(p):
    return model(x, params=p)[:, 0] - y

r = residual(model.params)
J = jacobian(r, model.params)
damped = J.T @ J + damping * eye(J.shape[1])
step = unravel_like(solve(damped, J.T @ r), model.params)
before = 0.5 * sum(r**2)
after = 0.5 * sum(residual(model.params - step)**2)
after
""",
    models={"model": NET},
    inputs={**DATA, "damping": 0.5},
    wrt=["params", "damping", "y"],
    terms=["before", "after"],
)
def levenberg_marquardt_step(p: Any, x: Any, y: Any, damping: Any) -> Any:
    # (J'J + c)^-1 J'r = J' (JJ' + c)^-1 r, with as many equations as examples.
    flat, tree = ravel_pytree(p)

    def residual(flat: Any) -> Any:
        return vmap(lambda x: scalar(tree(flat), x))(x) - y

    r, J = residual(flat), jacrev(residual)(flat)
    step = J.T @ jnp.linalg.solve(J @ J.T + damping * jnp.eye(len(r), dtype=r.dtype), r)
    before, after = jnp.sum(r**2) / 2, jnp.sum(residual(flat - step) ** 2) / 2
    return after, {"before": before, "after": after}


@loss(
    """
r = model(x)[:, 0] - y
J = jacobian(r, model.params)
step = unravel_like(solve(J.T @ J, J.T @ r), model.params)
sum((model(x, params=model.params - step)[:, 0] - y)**2)
""",
    models={"model": LINEAR},
    inputs={"x": normal(6, 3), "y": normal(6, seed=1)},
    wrt=["x", "y"],
)
def gauss_newton_solves_a_linear_model_in_one_step(p: Any, x: Any, y: Any) -> Any:
    # What is left is the part of y outside the columns of x, wherever the step began.
    return y @ y - y @ x @ jnp.linalg.solve(x.T @ x, x.T @ y), {}


@loss(
    """
J = jacobian(model(x)[:, 0], model.params)
information = J.T @ J + prior * eye(J.shape[1])
-slogdet(information)[1]
""",
    models={"model": NET},
    inputs={"x": normal(4, 2), "prior": 0.5},
    wrt=["x", "prior", "params"],
)
def d_optimal_design(p: Any, x: Any, prior: Any) -> Any:
    # det(J'J + c) = c^(P - n) det(J J' + c): a matrix as large as the number of design points.
    def rows(x: Any) -> Any:
        return ravel_pytree(grad(scalar)(p, x))[0]

    J = vmap(rows)(x)
    n, P = J.shape
    eigenvalues = jnp.linalg.eigvalsh(J @ J.T)
    return -jnp.sum(jnp.log(eigenvalues + prior)) - (P - n) * jnp.log(prior), {}


@loss(
    """
J = jacobian(model(x)[:, 0], model.params)
-slogdet(J.T @ J + 0.1 * eye(3))[1] + trace(inv(J.T @ J + 0.1 * eye(3)))
""",
    models={"model": LINEAR},
    inputs={"x": normal(5, 3)},
    wrt=["x"],
)
def designs_of_a_linear_model(p: Any, x: Any) -> Any:
    # The information of a linear model is x'x, whatever its parameters: D- and A-optimality by eigenvalues.
    eigenvalues = jnp.linalg.svd(x, compute_uv=False) ** 2 + 0.1
    return jnp.sum(1 / eigenvalues - jnp.log(eigenvalues)), {}


@loss(
    """
def loss(p):
    return mean((model(x, params=p)[:, 0] - y)**2)

fit = loss(model.params)
g = grad(fit, model.params)
flat = grad(norm(g)**2, model.params)
downhill = model.params - 0.1 * g
decrease = fit - loss(downhill)
norm(flat - 2 * hvp(fit, model.params, g))**2 + decrease
""",
    models={"model": NET},
    inputs=DATA,
    wrt=["params"],
    terms=["decrease"],
)
def gradient_of_a_squared_gradient_is_twice_its_hessian_product(p: Any, x: Any, y: Any) -> Any:
    decrease = fit(p, x, y) - fit(moved(p, -0.1, grad(fit)(p, x, y)), x, y)
    return decrease, {"decrease": decrease}


@loss(
    """
task_a = mean((model(x)[:, 0] - y)**2)
task_b = mean((model(x)[:, 0] + y)**2)
ga = grad(task_a, model.params)
gb = grad(task_b, model.params)
alignment = dot(ga, gb) / (norm(ga) * norm(gb))
task_a + task_b - 0.5 * alignment
""",
    models={"model": NET},
    inputs=DATA,
    wrt=["params", "y"],
    terms=["task_a", "task_b", "alignment"],
)
def aligned_gradients_of_two_tasks(p: Any, x: Any, y: Any) -> Any:
    (a, ga), (b, gb) = (jax.value_and_grad(fit)(p, x, way * y) for way in (1, -1))
    alignment = inner(ga, gb) / jnp.sqrt(inner(ga, ga) * inner(gb, gb))
    return a + b - alignment / 2, {"task_a": a, "task_b": b, "alignment": alignment}


@loss(
    """
fit = mean((model(x)[:, 0] - y)**2)
importance = stop_gradient(fisher)
drift = model.params - old
penalty = 0.5 * dot(importance * drift, drift)
fit + strength * penalty
""",
    models={"model": NET},
    inputs={
        **DATA,
        "old": mlp_tree(2, 4, 1, seed=2),
        "fisher": {name: leaf**2 for name, leaf in mlp_tree(2, 4, 1, seed=3).items()},
        "strength": 2.0,
    },
    wrt=["params", "strength"],
    terms=["fit", "penalty"],
)
def elastic_weight_consolidation(p: Any, x: Any, y: Any, old: Any, fisher: Any, strength: Any) -> Any:
    penalty = sum(jnp.sum(fisher[name] * (p[name] - old[name]) ** 2) for name in p) / 2
    return fit(p, x, y) + strength * penalty, {"fit": fit(p, x, y), "penalty": penalty}
