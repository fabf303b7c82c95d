"""Adversarial training and autoencoders: penalties on the derivatives of critics, generators and encoders."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import grad, jacfwd, vjp, vmap
from networks import conv_scalar, conv_scalar_json, mlp, mlp_json, scalar
from reference import Case, check, loss, normal, uniform

import nablad

PAIR = {"critic": mlp_json(3, 8, 8, 1), "generator": mlp_json(2, 6, 3)}


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


@loss(
    """
made = stop_gradient(generator(z))
between = alpha * real + (1 - alpha) * made
slope = norm(grad(sum(critic(between)), between), axis=1)
distance = mean(critic(made)) - mean(critic(real))
penalty = mean((slope - 1)**2)
distance + 10 * penalty
""",
    models=PAIR,
    inputs={"real": normal(6, 3), "z": normal(6, 2, seed=1), "alpha": uniform(6, 1)},
    wrt=["critic.params"],
    terms=["distance", "penalty"],
)
def wgan_gp_critic(p: Any, real: Any, z: Any, alpha: Any) -> Any:
    D = lambda x: scalar(p["critic"], x)  # noqa: E731
    made = vmap(lambda z: mlp(p["generator"], z))(z)

    def penalty(real: Any, made: Any, alpha: Any) -> Any:
        slope = grad(D)(made + alpha * (real - made))
        return (jnp.sqrt(slope @ slope) - 1) ** 2

    distance = jnp.mean(vmap(D)(made)) - jnp.mean(vmap(D)(real))
    gp = jnp.mean(vmap(penalty)(real, made, alpha))
    return distance + 10 * gp, {"distance": distance, "penalty": gp}


@loss(
    """
made = generator(z)
between = alpha * real + (1 - alpha) * made
slope = norm(grad(sum(critic(between)), between), axis=1)
mean(relu(slope - 1)**2) - mean(critic(made))
""",
    models=PAIR,
    inputs={"real": 2 * normal(6, 3), "z": normal(6, 2, seed=1), "alpha": uniform(6, 1)},
    wrt=["params", "real", "z", "alpha"],
)
def one_sided_penalty_through_the_generator(p: Any, real: Any, z: Any, alpha: Any) -> Any:
    def one(real: Any, z: Any, alpha: Any) -> Any:
        made = mlp(p["generator"], z)
        slope = grad(scalar, 1)(p["critic"], alpha * real + (1 - alpha) * made)
        return jnp.maximum(jnp.linalg.norm(slope) - 1, 0) ** 2 - scalar(p["critic"], made)

    return jnp.mean(vmap(one)(real, z, alpha)), {}


@loss(
    """
g = grad(sum(critic(images)), images)
slope = sqrt(sum(g**2, axis=(1, 2, 3)))
mean((slope - 1)**2)
""",
    models={"critic": conv_scalar_json(activation="tanh")},
    inputs={"images": normal(3, 1, 4, 4)},
    wrt=["params", "images"],
)
def gradient_penalty_of_a_convolutional_critic(p: Any, images: Any) -> Any:
    slopes = vmap(grad(lambda image: conv_scalar(p, image, jnp.tanh)))(images)
    return jnp.mean((jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3))) - 1) ** 2), {}


@loss(
    """
real_score = critic(real)[:, 0]
slope = grad(sum(real_score), real)
logistic = mean(softplus(-real_score)) + mean(softplus(critic(made)))
r1 = mean(sum(slope**2, axis=1))
logistic + gamma / 2 * r1
""",
    models={"critic": mlp_json(3, 8, 8, 1)},
    inputs={"real": normal(6, 3), "made": normal(6, 3, seed=1), "gamma": 10.0},
    wrt=["params", "gamma", "made"],
    terms=["logistic", "r1"],
)
def r1_with_a_logistic_critic(p: Any, real: Any, made: Any, gamma: Any) -> Any:
    # -log sigmoid(D(real)) - log(1 - sigmoid(D(made)))
    D = vmap(lambda x: scalar(p, x))
    logistic = -jnp.mean(jax.nn.log_sigmoid(D(real))) - jnp.mean(jax.nn.log_sigmoid(-D(made)))
    r1 = jnp.mean(vmap(lambda x: jnp.sum(grad(scalar, 1)(p, x) ** 2))(real))
    return logistic + gamma / 2 * r1, {"logistic": logistic, "r1": r1}


@loss(
    """
images = generator(w)
lengths = norm(vjp(images, w, y / sqrt(5)), axis=1)
average = stop_gradient(0.99 * before + 0.01 * mean(lengths))
mean((lengths - average)**2)
""",
    models={"generator": mlp_json(2, 6, 5)},
    inputs={"w": normal(6, 2), "y": normal(6, 5, seed=1), "before": 0.4},
    wrt=["params", "w", "y"],
)
def path_length(p: Any, w: Any, y: Any, before: Any) -> Any:
    def length(w: Any, y: Any) -> Any:
        J = jacfwd(mlp, 1)(p, w)
        return jnp.sqrt(jnp.sum((J.T @ y) ** 2) / 5)

    lengths = vmap(length)(w, y)
    average = jax.lax.stop_gradient(0.99 * before + 0.01 * jnp.mean(lengths))
    return jnp.mean((lengths - average) ** 2), {}


@loss(
    """
h = encoder(x)
rebuilt = mean((decoder(h) - x)**2)
contraction = mean(sum(batched_jacobian(h, x)**2, axis=(1, 2)))
rebuilt + weight * contraction
""",
    models={
        "encoder": {"layers": [{"dense": [4, 3], "activation": "sigmoid"}]},
        "decoder": {"layers": [{"dense": [3, 4]}]},
    },
    inputs={"x": normal(6, 4), "weight": 0.1},
    wrt=["params", "x", "weight"],
    terms=["rebuilt", "contraction"],
)
def contractive_autoencoder(p: Any, x: Any, weight: Any) -> Any:
    # |dh/dx|^2 = sum_k (h_k (1 - h_k))^2 |W_k|^2 for h = sigmoid(W x + b): Rifai et al. (2011), eq. 8.
    W, b = p["encoder"]["layer_1.weight"], p["encoder"]["layer_1.bias"]
    V, c = p["decoder"]["layer_1.weight"], p["decoder"]["layer_1.bias"]
    h = jax.nn.sigmoid(x @ W.T + b)
    rebuilt = jnp.mean((h @ V.T + c - x) ** 2)
    contraction = jnp.mean((h * (1 - h)) ** 2 @ jnp.sum(W**2, axis=1))
    return rebuilt + weight * contraction, {"rebuilt": rebuilt, "contraction": contraction}


@loss(
    """
def metric(z):
    J = jacobian(decoder(z), z)
    return J.T @ J

def speed(z, dz):
    return dz @ metric(z) @ dz

steps = path[1:] - path[:-1]
energy = sum(vmap(speed)(path[:-1], steps))
volume = sum(0.5 * slogdet(metric(path[0]))[1])
energy + volume
""",
    models={"decoder": mlp_json(2, 6, 4)},
    inputs={"path": normal(5, 2)},
    wrt=["params", "path"],
    terms=["energy", "volume"],
)
def geodesic_in_a_latent_space(p: Any, path: Any) -> Any:
    J = vmap(jacfwd(lambda z: mlp(p, z)))(path)
    energy = jnp.sum(jnp.einsum("nij,nj->ni", J[:-1], jnp.diff(path, axis=0)) ** 2)
    volume = jnp.sum(jnp.log(jnp.linalg.svd(J[0], compute_uv=False)))
    return energy + volume, {"energy": energy, "volume": volume}


@loss(
    """
def features(t):
    return norm(grad(sum(critic(t)), t), axis=1)

gap = mean(features(real)) - mean(features(generator(z)))
gap**2
""",
    models=PAIR,
    inputs={"real": normal(5, 3), "z": normal(5, 2, seed=1)},
    wrt=["generator.params", "critic.params[layer_1.weight]", "z"],
)
def matching_the_critics_slopes(p: Any, real: Any, z: Any) -> Any:
    def slope(x: Any) -> Any:
        _, pull = vjp(lambda x: scalar(p["critic"], x), x)
        return jnp.linalg.norm(pull(jnp.ones((), x.dtype))[0])

    made = vmap(lambda z: mlp(p["generator"], z))(z)
    return (jnp.mean(vmap(slope)(real)) - jnp.mean(vmap(slope)(made))) ** 2, {}
