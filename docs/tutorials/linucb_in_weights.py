"""Soft LinUCB written into transformer weights, step by step: `python docs/tutorials/linucb_in_weights.py [FOLDER]`.

Builds the transformer of docs/tutorials/linucb-in-weights.md from the primitives, holds every step against its formula
on real tokens, plays it beside the exact algorithm and prints its meters. Writes linucb-in-weights.png to FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # from a checkout, without installing

from eval.plays import plays
from eval.probe import targets
from icrl import algorithms, theory
from icrl.config import LinearBanditConfig, LinUCBConfig
from icrl.constructions import Construction
from icrl.constructions.assemble import assemble
from icrl.constructions.form import Form
from icrl.constructions.layer import Layer
from icrl.constructions.newton_schulz import Matrix, inversion, moments, schedule, steps_for
from icrl.constructions.primitives import add_product, add_scaled_product, piecewise_linear
from icrl.constructions.problem import ridge_problem
from icrl.constructions.roots import square_root_knots
from icrl.constructions.stream import bandit_stream
from icrl.policy import TransformerPolicy
from icrl.rollout.loop import play
from icrl.streams import Split

d, A, T = 2, 3, 20
RIDGE, CONFIDENCE, TEMPERATURE = 1.0, 1.0, 0.2
BANDIT = LinearBanditConfig(dim=d, n_actions=A, horizon=T, noise_std=0.5)
EXACT = LinUCBConfig(ridge=RIDGE, confidence=CONFIDENCE, temperature=TEMPERATURE)


def build() -> Construction:
    """The four kinds of layer, in order."""
    problem = ridge_problem(BANDIT, RIDGE)
    scratch = {"moment": d, "image": d * d, "inverse": d * d, "ridge_estimate": d, "directions": A * d, "widths": A}
    stream = bandit_stream(d, A, scratch)
    print(f"1. the token: D = {stream.width} coordinates")
    for name, block in stream.blocks.items():
        print(f"     {name:15} {block.start:3} to {block.stop - 1}")

    first = moments(stream, problem)
    print(f"2. moments: A_t / (i beta) and (1/i) sum a_j r_j by {first.build(0).heads} heads")

    n_steps = steps_for(problem.condition, 1e-6)
    plan = schedule(problem.condition, n_steps)
    steps = inversion(stream, problem, plan.steps)
    print(f"3. inverse: kappa = {problem.condition:.0f}, {n_steps} layers leave |A X - I| = {plan.error:.1e}")

    inverse = Matrix(stream, "inverse", d)
    solve = Layer(stream)
    for p in range(d):
        row = plan.centre * inverse.row(p)
        for k in range(A):
            action = stream["action_set"][k * d : (k + 1) * d]
            add_product(solve, row, action, stream["directions"][k * d + p], bound=8.0)
        # the moment carries 1/i, which the value i^2 takes back
        add_scaled_product(solve, row, stream["moment"], stream.square, stream["ridge_estimate"][p], bound=64.0)
    print(f"4. solve: A_t^-1 a_k and w_t by {solve.build(0).heads} heads")

    read = Layer(stream)
    share = 1 / TEMPERATURE
    knots, roots = square_root_knots(1.01 * problem.width_bound, 40)
    for k in range(A):
        part = slice(k * d, (k + 1) * d)
        action, logit = stream["action_set"][part], stream["logits"][k]
        add_product(read, stream["ridge_estimate"], action, share * logit, bound=64.0)
        add_product(read, stream["directions"][part], action, stream["widths"][k], bound=8.0, positive=True)
        argument: Form = stream["widths"][k]
        piecewise_linear(read, argument, knots, roots, share * CONFIDENCE * logit)
    block = read.build(0)
    print(f"5. read: indices over temperature into the logits, {block.heads} heads and {block.mlp_dim} neurons")
    return assemble(BANDIT, [first, *steps, solve, read], method="tutorial")


def check(model: Construction) -> None:
    """Every block of the stream against its formula, at every token that asks for an action."""
    data = plays(BANDIT, EXACT, 1, 8)
    states = [h[:, ::2] for h in model.states(*data)]
    read = model.stream.read
    truth = targets(data, RIDGE)
    i = torch.arange(1, 2 * T, 2, dtype=torch.float64)[:, None]
    beta = ridge_problem(BANDIT, RIDGE).smoothness
    gram = torch.from_numpy(truth["gram"])[..., [0, 1, 1, 2]]
    print("6. each layer against its formula, largest difference over 8 trajectories and all t")
    report("A_t / (i beta), after layer 1", read(states[1], "image"), gram / (i * beta))
    report("A_t^-1 a_k, after 'solve'", read(states[-2], "directions"), torch.from_numpy(truth["directions"]))
    report("w_t, after 'solve'", read(states[-2], "ridge_estimate"), torch.from_numpy(truth["ridge_estimate"]))
    a_k = data.shown.double()
    w, x_k = (torch.from_numpy(truth[name]) for name in ("ridge_estimate", "directions"))
    width = torch.einsum("btkp,bkp->btk", x_k.unflatten(-1, (A, d)), a_k)
    index = torch.einsum("btp,bkp->btk", w, a_k) + CONFIDENCE * width.sqrt()
    report("log p, at the end", model(*data).log_softmax(-1).detach(), (index / TEMPERATURE).log_softmax(-1))


def report(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    print(f"     {what:42} {float((found - expected).abs().max()):.1e}")


def compare(model: Construction, environments: int) -> tuple[np.ndarray, np.ndarray]:
    """Regret [B,T] of the transformer and of the algorithm in the same environments, with the same random numbers."""
    index = np.arange(environments, dtype=np.int64)
    players = (TransformerPolicy(model), algorithms.build(EXACT, BANDIT))
    ours, theirs = (play(BANDIT, player, 2, Split.EVAL, index).suboptimality.cumsum(1) for player in players)
    difference = (ours - theirs)[:, -1]
    error = difference.std(ddof=1) / np.sqrt(environments)
    print(f"7. regret after {T} rounds in {environments} environments")
    print(f"     transformer {ours[:, -1].mean():.3f}, algorithm {theirs[:, -1].mean():.3f}")
    print(f"     paired difference {difference.mean():.4f} +- {error:.4f}")
    return ours, theirs


def draw(ours: np.ndarray, theirs: np.ndarray, folder: Path) -> None:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    rounds = np.arange(1, T + 1)
    axes.plot(rounds, theirs.mean(0), linewidth=4, alpha=0.4, label="soft LinUCB")
    axes.plot(rounds, ours.mean(0), "--", color="black", label="the transformer")
    axes.set(xlabel="round t", ylabel="cumulative regret")
    axes.legend()
    figure.savefig(folder / "linucb-in-weights.png", dpi=110, metadata={"Software": None})


def meters(model: Construction) -> None:
    """Sizes, norm, capacity and what Theorem 6 says of them."""
    config = model.config
    print(f"8. L = {config.layers}, M = {config.heads}, D = {config.embed_dim}, D' = {config.mlp_dim}")
    of = theory.class_of(model, *plays(BANDIT, EXACT, 3, 8))
    print(f"     |||theta||| = {theory.operator_norm(model).value:.1f}, {of.numbers:,} numbers in the class")
    b = theory.reward_bound(BANDIT)
    found = theory.guarantee(of.log_cover, horizon=T, trajectories=100_000, reward_bound=b)
    for line in found.table().splitlines():
        print(f"     {line}")
    print(f"     (i) says something from n = {theory.fewest_trajectories(of.log_cover, part=1, horizon=T):.2e} on")


def main(folder: Path, environments: int = 200) -> None:
    torch.set_num_threads(1)
    model = build()
    check(model)
    draw(*compare(model, environments), folder)
    meters(model)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
