"""Classifiers and regressors whose loss holds their derivatives: smooth, robust, distilled, Sobolev."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import grad, hessian, jacfwd, jacrev, vmap
from networks import (
    attention,
    batch_norm,
    conv_scalar_json,
    layer_norm,
    leaves,
    mlp,
    mlp_json,
    mlp_tree,
    scalar,
)
from reference import Case, check, loss, normal, uniform

import nablad

CLASSIFIER = mlp_json(3, 6, 4)
X = normal(5, 3)
LABELS = np.array([0, 3, 1, 1, 2])


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


def cross_entropy(p: Any, x: Any, label: Any) -> Any:
    """-log of the softmax at the label, from the definition."""
    logits = mlp(p, x)
    return jnp.log(jnp.sum(jnp.exp(logits))) - logits[label]


@loss(
    """
logits = model(x)
J = batched_jacobian(logits, x)
fit = mean((logits - y)**2)
smooth = sum(J**2) / (2 * x.shape[0])
fit + 0.01 * smooth
""",
    models={"model": CLASSIFIER},
    inputs={"x": X, "y": normal(5, 4, seed=1)},
    wrt=["params", "x"],
    terms=["fit", "smooth"],
)
def jacobian_regularisation_exact(p: Any, x: Any, y: Any) -> Any:
    fit = jnp.mean((vmap(mlp, (None, 0))(p, x) - y) ** 2)
    smooth = sum(jnp.sum(jacrev(mlp, 1)(p, each) ** 2) for each in x) / (2 * len(x))
    return fit + 0.01 * smooth, {"fit": fit, "smooth": smooth}


@loss(
    """
logits = model(x)
unit = v / norm(v, axis=1, keepdims=True)
4 / (2 * x.shape[0]) * sum(vjp(logits, x, unit)**2)
""",
    models={"model": CLASSIFIER},
    inputs={"x": X, "v": normal(5, 4, seed=1)},
    wrt=["params", "x", "v"],
)
def jacobian_regularisation_projected(p: Any, x: Any, v: Any) -> Any:
    # Hoffman et al. (2019), eq. 7: C / 2N sum |v' J|^2, C classes, v on the unit sphere.
    def one(x: Any, v: Any) -> Any:
        return jnp.sum((v @ jacfwd(mlp, 1)(p, x)) ** 2) / (v @ v)

    return 4 / 2 * jnp.mean(vmap(one)(x, v)), {}


@loss(
    """
def largest(x, v0):
    y = model(x)
    def step(i, v):
        w = vjp(y, x, jvp(y, x, v))
        return w / norm(w)
    v = stop_gradient(fori(400, step, v0))
    return norm(jvp(y, x, v))

mean(vmap(largest)(x, v0))
""",
    models={"model": CLASSIFIER},
    inputs={"x": X, "v0": normal(5, 3, seed=1)},
    wrt=["params", "x"],
)
def spectral_norm_by_power_iteration(p: Any, x: Any, v0: Any) -> Any:
    # 400 steps have converged: the largest singular value, and its derivative u' dJ v.
    singular = vmap(lambda x: jnp.linalg.svd(jacfwd(mlp, 1)(p, x), compute_uv=False)[0])(x)
    return jnp.mean(singular), {}


@loss(
    """
def cross_entropy(x):
    return -sum(log_softmax(model(x)) * targets)

fit = cross_entropy(x) / x.shape[0]
penalty = mean(sum(grad(cross_entropy(x), x)**2, axis=1))
fit + 0.5 * penalty
""",
    models={"model": CLASSIFIER},
    inputs={"x": X, "targets": np.eye(4)[LABELS]},
    wrt=["params", "x"],
    terms=["fit", "penalty"],
)
def double_backpropagation_of_cross_entropy(p: Any, x: Any, targets: Any) -> Any:
    # d CE / dx = J' (softmax - target).
    def slope(x: Any, target: Any) -> Any:
        return jacrev(mlp, 1)(p, x).T @ (jax.nn.softmax(mlp(p, x)) - target)

    fit = jnp.mean(vmap(cross_entropy, (None, 0, 0))(p, x, jnp.argmax(targets, axis=1)))
    penalty = jnp.mean(vmap(lambda *one: jnp.sum(slope(*one) ** 2))(x, targets))
    return fit + 0.5 * penalty, {"fit": fit, "penalty": penalty}


@loss(
    """
def ce(logits, label):
    return logsumexp(logits) - logits[label]

def example(x, label):
    clean = ce(model(x), label)
    moved = x + eps * stop_gradient(sign(grad(clean, x)))
    return stack([clean, ce(model(moved), label)])

losses = mean(vmap(example)(x, label), axis=0)
clean = losses[0]
attacked = losses[1]
0.5 * clean + 0.5 * attacked
""",
    models={"model": CLASSIFIER},
    inputs={"x": X, "label": LABELS, "eps": 0.1},
    wrt=["params", "eps", "x"],
    terms=["clean", "attacked"],
)
def fast_gradient_sign(p: Any, x: Any, label: Any, eps: Any) -> Any:
    slope = jax.lax.stop_gradient(vmap(grad(cross_entropy, 1), (None, 0, 0))(p, x, label))
    batch = vmap(cross_entropy, (None, 0, 0))
    clean, attacked = jnp.mean(batch(p, x, label)), jnp.mean(batch(p, x + eps * jnp.sign(slope), label))
    return (clean + attacked) / 2, {"clean": clean, "attacked": attacked}


@loss(
    """
def ce(x):
    return sum(logsumexp(model(x), axis=1) - sum(model(x) * targets, axis=1))

def climb(i, moved):
    up = moved + 0.05 * sign(grad(ce(moved), moved))
    return clip(up, x - eps, x + eps)

worst = stop_gradient(fori(3, climb, x + start))
ce(worst) / x.shape[0]
""",
    models={"model": CLASSIFIER},
    inputs={"x": X, "start": 0.04 * uniform(5, 3), "targets": np.eye(4)[LABELS], "eps": 0.1},
    wrt=["params"],
)
def projected_gradient_attack(p: Any, x: Any, start: Any, targets: Any, eps: Any) -> Any:
    label = jnp.argmax(targets, axis=1)
    moved = x + start
    for _ in range(3):
        moved = moved + 0.05 * jnp.sign(vmap(grad(cross_entropy, 1), (None, 0, 0))(p, moved, label))
        moved = x + jnp.clip(moved - x, -eps, eps)
    batch = vmap(cross_entropy, (None, 0, 0))
    return jnp.mean(batch(p, jax.lax.stop_gradient(moved), label)), {}


@loss(
    """
clean = log_softmax(model(x))
def divergence_at(r):
    return mean(sum(exp(stop_gradient(clean)) * (stop_gradient(clean) - log_softmax(model(x + r))), axis=1))

probe = 0.1 * r0
g = grad(divergence_at(probe), probe)
r = stop_gradient(eps * g / norm(g, axis=1, keepdims=True))
divergence_at(r)
""",
    models={"model": CLASSIFIER},
    inputs={"x": X, "r0": normal(5, 3, seed=1), "eps": 0.5},
    wrt=["params"],
)
def virtual_adversarial_training(p: Any, x: Any, r0: Any, eps: Any) -> Any:
    def kl(p: Any, x: Any, r: Any) -> Any:
        before = jax.lax.stop_gradient(jax.nn.softmax(mlp(p, x)))
        return jnp.sum(before * (jnp.log(before) - jnp.log(jax.nn.softmax(mlp(p, x + r)))))

    def one(x: Any, r0: Any) -> Any:
        g = jax.lax.stop_gradient(grad(kl, 2)(p, x, 0.1 * r0))
        return kl(p, x, eps * g / jnp.linalg.norm(g))

    return jnp.mean(vmap(one)(x, r0)), {}


@loss(
    """
u = model(x)[:, 0]
total = sum(u)
g = grad(total, x)
value = mean((u - f)**2)
slope = mean(sum((g - df)**2, axis=1))
curvature = mean(sum((hvp(total, x, v) - ddf_v)**2, axis=1))
value + slope + curvature
""",
    models={"model": mlp_json(3, 6, 1)},
    inputs={
        "x": X,
        "v": normal(5, 3, seed=1),
        "f": np.sum(X**2, axis=1) / 2,
        "df": X,
        "ddf_v": normal(5, 3, seed=1),
    },
    wrt=["params", "v"],
    terms=["value", "slope", "curvature"],
)
def sobolev_training(p: Any, x: Any, v: Any, f: Any, df: Any, ddf_v: Any) -> Any:
    # The target is |x|^2 / 2, with gradient x and H v = v.
    u, du, H = (vmap(each, (None, 0))(p, x) for each in (scalar, grad(scalar, 1), hessian(scalar, 1)))
    value = jnp.mean((u - f) ** 2)
    slope = jnp.mean(jnp.sum((du - df) ** 2, axis=1))
    curvature = jnp.mean(jnp.sum((jnp.einsum("nij,nj->ni", H, v) - ddf_v) ** 2, axis=1))
    return value + slope + curvature, {"value": value, "slope": slope, "curvature": curvature}


@loss(
    """
student = batched_jacobian(model(x), x)
teacher = batched_jacobian(model(x, params=frozen), x)
values = mean((model(x) - model(x, params=frozen))**2)
slopes = mean((student - teacher)**2)
values + slopes
""",
    models={"model": CLASSIFIER},
    inputs={"x": X, "frozen": mlp_tree(3, 6, 4, seed=3)},
    wrt=["params", "x"],
    terms=["values", "slopes"],
)
def distillation_of_jacobians(p: Any, x: Any, frozen: Any) -> Any:
    f, J = vmap(mlp, (None, 0)), vmap(jacrev(mlp, 1), (None, 0))
    values = jnp.mean((f(p, x) - f(frozen, x)) ** 2)
    slopes = jnp.mean((J(p, x) - J(frozen, x)) ** 2)
    return values + slopes, {"values": values, "slopes": slopes}


@loss(
    """
g = grad(sum(model(images)), images)
mean(sum(g**2, axis=(1, 2, 3)))
""",
    models={"model": conv_scalar_json(activation="softplus")},
    inputs={"images": normal(3, 1, 4, 4)},
    wrt=["params", "images"],
)
def input_gradient_of_a_convolution(p: Any, images: Any) -> Any:
    # The slope with respect to a pixel collects the filters of the patches that hold it.
    def slope(image: Any) -> Any:
        V = p["layer_3.weight"][0].reshape(3, 2, 2)
        total = jnp.zeros_like(image[0])
        for i in range(2):
            for j in range(2):
                patch = image[0, i : i + 3, j : j + 3]
                before = jnp.sum(p["layer_1.weight"][:, 0] * patch, axis=(1, 2)) + p["layer_1.bias"]
                pulled = (V[:, i, j] * jax.nn.sigmoid(before)) @ p["layer_1.weight"][:, 0].reshape(3, 9)
                total = total.at[i : i + 3, j : j + 3].add(pulled.reshape(3, 3))
        return jnp.sum(total**2)

    return jnp.mean(vmap(slope)(images)), {}


@loss(
    """
g = grad(sum(model(images)**2), images)
mean(sum(g**2, axis=(1, 2, 3)))
""",
    models={
        "model": {
            "layers": [
                {"conv": [1, 2, 3], "padding": 1, "stride": 2, "activation": "tanh"},
                {"avgpool": 2},
                {"flatten": True},
                {"dense": [2, 2]},
            ]
        }
    },
    inputs={"images": normal(3, 1, 4, 4)},
    wrt=["params", "images"],
)
def input_gradient_of_strided_padding_and_pooling(p: Any, images: Any) -> Any:
    def size(image: Any) -> Any:
        padded = jnp.pad(image[0], 1)
        filtered = [
            jnp.tensordot(p["layer_1.weight"][:, 0], padded[i : i + 3, j : j + 3], 2) + p["layer_1.bias"]
            for i in (0, 2)
            for j in (0, 2)
        ]
        pooled = jnp.mean(jnp.tanh(jnp.stack(filtered)), axis=0)
        return jnp.sum((p["layer_4.weight"] @ pooled + p["layer_4.bias"]) ** 2)

    return jnp.mean(vmap(lambda image: jnp.sum(grad(size)(image) ** 2))(images)), {}


@loss(
    """
def size(x):
    g = grad(sum(model(x)**2), x)
    return sum(g**2)

mean(vmap(size)(sequences))
""",
    models={
        "model": {
            "layers": [
                {"residual": [{"layernorm": 4}, {"attention": {"heads": 2, "size": 4}}]},
                {"mean": 0},
                {"dense": [4, 2]},
            ]
        }
    },
    inputs={"sequences": normal(2, 3, 4)},
    wrt=["params", "sequences"],
)
def input_gradient_of_attention(p: Any, sequences: Any) -> Any:
    def size(x: Any) -> Any:
        normed = vmap(lambda row: layer_norm(leaves(p, "layer_1.layer_1"), row))(x)
        h = x + attention(leaves(p, "layer_1.layer_2"), normed, heads=2)
        return jnp.sum((p["layer_3.weight"] @ h.mean(axis=0) + p["layer_3.bias"]) ** 2)

    return jnp.mean(vmap(lambda x: jnp.sum(grad(size)(x) ** 2))(sequences)), {}


@loss(
    """
y = model(x)
g = grad(sum(y**3), x)
fit = mean(y**2)
penalty = mean(sum(g**2, axis=1))
fit + penalty
""",
    models={
        "model": {"layers": [{"dense": [3, 4]}, {"batchnorm": 4, "activation": "tanh"}, {"dense": [4, 1]}]}
    },
    inputs={"x": X},
    mode="train",
    wrt=["params", "x"],
    terms=["fit", "penalty"],
)
def penalty_through_batch_statistics(p: Any, x: Any) -> Any:
    def f(x: Any) -> Any:
        h = x @ p["layer_1.weight"].T + p["layer_1.bias"]
        h = jnp.tanh(batch_norm(leaves(p, "layer_2"), h, h.mean(axis=0), h.var(axis=0)))
        return h @ p["layer_3.weight"].T + p["layer_3.bias"]

    penalty = jnp.mean(jnp.sum(grad(lambda x: jnp.sum(f(x) ** 3))(x) ** 2, axis=1))
    return jnp.mean(f(x) ** 2) + penalty, {"fit": jnp.mean(f(x) ** 2), "penalty": penalty}


@loss(
    """
vectors = embed(tokens)
logits = head(vectors)
ce = mean(logsumexp(logits, axis=1) - sum(logits * targets, axis=1))
g = grad(ce, vectors)
moved = vectors + eps * stop_gradient(g / norm(g))
attacked_logits = head(moved)
attacked = mean(logsumexp(attacked_logits, axis=1) - sum(attacked_logits * targets, axis=1))
penalty = sum(g**2)
ce + attacked + penalty
""",
    models={
        "embed": {"layers": [{"embedding": [7, 4]}, {"position_embedding": [6, 4]}, {"mean": 0}]},
        "head": mlp_json(4, 5, 3),
    },
    inputs={
        "tokens": np.array([[1, 2, 6], [0, 3, 3], [5, 4, 1], [2, 2, 2]]),
        "targets": np.eye(3)[[0, 2, 1, 1]],
        "eps": 0.3,
    },
    wrt=["params", "eps"],
    terms=["ce", "attacked", "penalty"],
)
def adversarial_word_vectors(p: Any, tokens: Any, targets: Any, eps: Any) -> Any:
    embed = p["embed"]
    vectors = jnp.mean(embed["layer_1.weight"][tokens] + embed["layer_2.weight"][:3], axis=1)

    def ce(vectors: Any) -> Any:
        chances = jax.nn.softmax(vmap(lambda h: mlp(p["head"], h))(vectors), axis=1)
        return -jnp.mean(jnp.log(jnp.sum(chances * targets, axis=1)))

    g = grad(ce)(vectors)
    attack = eps * jax.lax.stop_gradient(g / jnp.linalg.norm(g))
    attacked, penalty = ce(vectors + attack), jnp.sum(g**2)
    return ce(vectors) + attacked + penalty, {"ce": ce(vectors), "attacked": attacked, "penalty": penalty}


@loss(
    """
def logit(x):
    return model(x)[0]

def example(x, label, m):
    g = grad(logit(x), x)
    return (softplus(logit(x)) - label * logit(x)) + weight * sum((m * g)**2)

mean(vmap(example)(x, label, mask))
""",
    models={"model": mlp_json(3, 6, 1, activation="gelu")},
    inputs={
        "x": X,
        "label": np.array([0, 1, 1, 0, 1]),
        "mask": (normal(5, 3, seed=2) > 0).astype(float),
        "weight": 2.0,
    },
    wrt=["params", "weight"],
)
def right_for_the_right_reasons(p: Any, x: Any, label: Any, mask: Any, weight: Any) -> Any:
    # Binary cross entropy, and the input gradient where an annotator says nothing should matter.
    def gelu(x: Any) -> Any:
        return x * (1 + jax.lax.erf(x / 2**0.5)) / 2

    def example(x: Any, label: Any, mask: Any) -> Any:
        chance = jax.nn.sigmoid(scalar(p, x, gelu))
        entropy = -jnp.where(label == 1, jnp.log(chance), jnp.log(1 - chance))
        return entropy + weight * jnp.sum(jnp.where(mask > 0, grad(scalar, 1)(p, x, gelu), 0) ** 2)

    return jnp.mean(vmap(example)(x, label, mask)), {}


@loss(
    """
y = model(x)
def point(x):
    return sum(svdvals(jacobian(model(x), x))[:2])
nuclear = mean(vmap(point)(x))
orthogonal = sum((model.params["layer_1.weight"].T @ model.params["layer_1.weight"] - eye(3))**2)
nuclear + orthogonal
""",
    models={"model": CLASSIFIER},
    inputs={"x": X},
    wrt=["model.params[layer_1.weight]", "x"],
    terms=["nuclear", "orthogonal"],
)
def singular_values_and_orthogonal_weights(p: Any, x: Any) -> Any:
    def two_largest(x: Any) -> Any:
        J = jacfwd(mlp, 1)(p, x)
        return jnp.sum(jnp.sqrt(jnp.linalg.eigvalsh(J.T @ J)[1:]))

    W = p["layer_1.weight"]
    nuclear, orthogonal = jnp.mean(vmap(two_largest)(x)), jnp.sum((W.T @ W - jnp.eye(3, dtype=W.dtype)) ** 2)
    return nuclear + orthogonal, {"nuclear": nuclear, "orthogonal": orthogonal}
