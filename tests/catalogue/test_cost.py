"""Costs against factors that are built and counted, against the paper's tables, and through the command line."""

from __future__ import annotations

import ast
import json
import re
import sys
from io import StringIO
from math import gcd, isqrt, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from method_lists import ALSO, BLOCK_METHODS, EXPERT_METHODS, METHODS, NO_RANK, SPLIT
from scipy.linalg import block_diag, circulant

import bora_analysis.catalogue.cost
from bora_analysis.analysis.budget import within_budget
from bora_analysis.analysis.cost_tables import COST_COLUMNS
from bora_analysis.analysis.optimal_blocks import blocks_curve, optimal_blocks, shared_blocks
from bora_analysis.catalogue import METHODS as CATALOGUE
from bora_analysis.catalogue.architectures import ARCHITECTURES, Matrices, architecture, chosen, matrices
from bora_analysis.catalogue.cost import cost, frozen_bytes, memory
from bora_analysis.catalogue.formulas import Cost
from bora_analysis.catalogue.sizes import common_divisors, kronecker_factors
from bora_analysis.cli import main
from bora_analysis.style import method_look
from bora_analysis.updates.blocks import bora, melora


def factors(method, m, n, r, b, k) -> tuple[list[Any], Any]:
    """Trained arrays of one random adapter, and ΔW as the method defines it, by plain dense algebra."""
    rng = np.random.default_rng(7)

    def new(*shape):
        return rng.normal(size=shape)

    W = new(m, n)
    match method:
        case "lora" | "rslora" | "lora+":
            B, A = new(m, r), new(r, n)
            return [B, A], B @ A
        case "dora":
            B, A, size = new(m, r), new(r, n), new(m)
            V = W + B @ A
            return [B, A, size], (size / np.linalg.norm(V, axis=1))[:, None] * V - W
        case "melora" | "bora":
            B, A = new(b, m // b, r), new(b, r, n // b)
            sigma = np.exp(new(b, b, r)) if method == "bora" else np.eye(b)[:, :, None] * np.ones(r)
            blocks = [[B[i] @ np.diag(sigma[i, j]) @ A[j] for j in range(b)] for i in range(b)]
            return [B, A] + [sigma] * (method == "bora"), np.block(blocks)
        case "hydralora":
            A, B, router, gate = new(r, n), new(k, m, r), new(k, n), rng.uniform(size=k)
            return [A, B, router], np.einsum("k,kmr,rn->mn", gate, B, A)
        case "moelora":
            A, B, router, gate = new(k, r, n), new(k, m, r), new(k, n), rng.uniform(size=k)
            return [A, B, router], np.einsum("k,kmr,krn->mn", gate, B, A)
        case "sbora-fa":
            B = new(m, r)
            return [B], B @ np.eye(n)[rng.permutation(n)[:r]] if r <= n else B @ np.eye(r, n)
        case "sbora-fb":
            A = new(r, n)
            return [A], np.eye(m)[:, rng.permutation(m)[:r]] @ A if r <= m else np.eye(m, r) @ A
        case "adalora":
            B, E, A = new(m, r), new(r, 1), new(r, n)
            return [B, E, A], B @ (E * A)
        case "vera":
            left, right = new(m, 1), new(r, 1)
            return [left, right], (left * new(m, r)) @ (right * new(r, n))
        case "loha":
            arrays = [new(m, r), new(r, n), new(m, r), new(r, n)]
            return arrays, (arrays[0] @ arrays[1]) * (arrays[2] @ arrays[3])
        case "hira":
            B, A = new(m, r), new(r, n)
            return [B, A], W * (B @ A)
        case "lokr" | "krona":
            (p, u), (q, v) = kronecker_factors(m), kronecker_factors(n)
            w1 = new(p, q)
            second = [new(u, r), new(r, v)] if method == "lokr" and r < max(u, v) / 2 else [new(u, v)]
            return [w1, *second], np.kron(w1, second[0] @ second[1] if len(second) == 2 else second[0])
        case "gralora":
            A, B = new(b, n // b, r), new(b, r, m // b)
            part = r // b
            blocks = [
                [B[i, j * part : (j + 1) * part].T @ A[j, :, i * part : (i + 1) * part].T for j in range(b)]
                for i in range(b)
            ]
            return [A, B], np.block(blocks)
        case "delora":
            B, A, bound, norm = new(m, r), new(r, n), new(1), rng.uniform(1, 2, n)
            d = bound / (r * np.linalg.norm(B, axis=0) * np.linalg.norm(A, axis=1))
            return [B, A, bound], B @ np.diag(d) @ A @ np.diag(norm)
        case "bdlora-a":
            B, A = new(m, r), new(b, r // b, n // b)
            return [B, A], B @ np.asarray(block_diag(*A))
        case "bdlora-b":
            B, A = new(b, m // b, r // b), new(r, n)
            return [B, A], np.asarray(block_diag(*B)) @ A
        case "vblora":
            v = gcd(m, n)
            bank, logits_A, logits_B = new(v, v), new(r, n // v, v), new(m // v, r, v)
            A, B = mixed(logits_A, bank).reshape(r, n), mixed(logits_B, bank).transpose(0, 2, 1).reshape(m, r)
            return [logits_A, logits_B], B @ A
        case "miss":
            block = new(r, m)
            return [block], np.tile(block.T, n)[:, :n]
        case "c3a":
            s = gcd(m, n) // b
            kernel = new(m // s, n // s, s)
            return [kernel], np.block([[circulant(own) for own in row] for row in kernel])
        case "fourierft":
            S = np.zeros(m * n)
            trained = new(min(1000, m * n))
            S[rng.permutation(m * n)[: trained.size]] = trained
            return [trained], np.fft.ifft2(S.reshape(m, n)).real
        case "pvera":
            left, right = new(m), new(2 * r)
            return [left, right], np.diag(left) @ new(m, r) @ np.diag(right[:r]) @ new(2 * r, n)[:r]
        case "shira":
            trained, places = new(min(32 * (m + n), m * n)), rng.permutation(m * n)
            S = np.zeros(m * n)
            S[places[: trained.size]] = trained
            return [trained], S.reshape(m, n)
        case "unilora":  # its vector is that of all matrices
            theta = new(256)
            A, B = (theta[rng.integers(256, size=shape)] * new(*shape) for shape in ((r, n), (m, r)))
            return [], B @ A
        case "adamss":
            rows, few, V = np.array_split(rng.permutation(m), 5), min(r, m, n), new(min(r, m, n), n)
            A, B, update = [new(1, few) for _ in rows], [new(len(own), 1) for own in rows], np.zeros((m, n))
            for own, first, last in zip(rows, A, B, strict=True):
                update[own] = last @ first @ V
            return [*A, *B], update
        case "tlora":
            P, d, Q = new(m, r), new(r), new(r, n)
            U, s, V = np.linalg.svd(W)
            return [P, d, Q], P * d @ Q - U[:, :r] * s[:r] @ V[:r]
        case "kasa":
            B, d, A = new(m, r), new(r), new(r, n)
            return [B, d, A], B @ np.diag(d) @ A
        case "qalora":
            groups = -(-n // 16)
            B, A = new(m, r), new(r, groups)
            return [B, A], B @ np.repeat(A, 16, axis=1)[:, :n]
        case "tinylora":
            v = new(64)
            return [v], new(m, r) @ np.tensordot(v, new(64, r, r), 1) @ new(r, n)
        case "randlora":
            count = -(-min(m, n) // r)
            scales, gamma, A = new(count, r), new(count, min(m, n)), new(r, min(m, n))
            update = np.zeros((max(m, n), min(m, n)))
            for scale, own in zip(scales, gamma, strict=True):
                update += new(max(m, n), r) @ np.diag(scale) @ A @ np.diag(own)
            return [scales, gamma], update if m >= n else update.T
        case "poly":
            A, B, logits = new(4, n, r), new(4, r, m), new(1, 4)
            return [A, B, logits], np.einsum("ok,kxr->rx", logits, A).T.dot(np.einsum("ok,krx->rx", logits, B)).T
        case "lily":
            A, B, router, gate = new(r, n), new(k, m, r), new(k, r), rng.uniform(size=k)
            return [A, B, router], np.einsum("k,kmr,rn->mn", gate, B, A)
        case "supertuning" | "supra":
            S, trained = np.zeros((m, n)), new(m * n // 100)
            np.fill_diagonal(S, np.pad(trained, (0, m + n))[: min(m, n)])
            pair = [new(m, r), new(r, n)] if method == "supra" else []
            return [trained, *pair], S + (pair[0] @ pair[1] if pair else 0)
        case "waveft":
            return [new(min(2592, m * n))], new(m, n)
        case "deft":
            P, R = new(m, r), new(r, n)
            return [P, R], P @ (R - np.maximum(P, 0).T @ W)
        case "psoft":
            angles, before, after = new(r * (r - 1) // 2), new(r), new(r)
            S = np.zeros((r, r))
            S[np.triu_indices(r, 1)] = angles
            R = before[:, None] * np.linalg.solve(np.eye(r) - S + S.T, np.eye(r) + S - S.T) * after
            U, s, V = np.linalg.svd(W)
            return [angles, before, after], U[:, :r] * s[:r] @ (R - np.eye(r)) @ V[:r]
        case "frod":
            scales, S, few = new(n), np.zeros(n * n), new(max(1, n * n // 100))
            S[1 : len(few) + 1] = few
            return [scales, few], new(m, n) @ (S.reshape(n, n) + np.diag(scales)) @ new(n, n) - W
        case "osf":
            q = min(m, n) - min(m, n) // 2
            (U, s, V), left, sigma, right = np.linalg.svd(W, full_matrices=False), new(m, q), new(q), new(q, n)
            return [left, sigma, right], left * sigma @ right - U[:, -q:] * s[-q:] @ V[-q:]
        case "glora":
            arrays = [new(m, r), new(r, n), new(m, r), new(r, n)]
            return arrays, W * (arrays[0] @ arrays[1]) + arrays[2] @ arrays[3]
        case "peanut":
            A, B = new(r, m), new(m, r)
            return [A, B], B @ np.maximum(A @ W, 0)
        case "road":
            angle, scale = new(m // 2), new(m // 2)
            cos, sin = np.diag(scale * np.cos(angle)), np.diag(scale * np.sin(angle))
            return [angle, scale], np.block([[cos, -sin], [sin, cos]]) @ W - W
        case "oft":
            size = nearest(n, r)
            S = [np.triu(new(size, size), 1) for _ in range(n // size)]
            turned = [np.linalg.solve(np.eye(size) + X - X.T, np.eye(size) - X + X.T) for X in S]
            return [X[np.triu_indices(size, 1)] for X in S], W @ (np.asarray(block_diag(*turned)) - np.eye(n))
        case "boft":
            size, scales = nearest(n, r), new(m, 1)
            S = new(n // size, size, size)
            turned = [np.linalg.solve(np.eye(size) + X - X.T, np.eye(size) - X + X.T) for X in S]
            return [S, scales], scales * (W @ np.asarray(block_diag(*turned))) - W
        case "hra":
            axes, R = new(n, r), np.eye(n)
            for u in axes.T:
                R = R @ (np.eye(n) - 2 * np.outer(u, u) / (u @ u))
            return [axes], W @ (R - np.eye(n))
        case "ia3":
            scales = new(m, 1)
            return [scales], (scales - 1) * W
        case "pissa" | "lora-ga" | "olora" | "corda":
            B, A = new(m, r), new(r, n)
            return [B, A], B @ A - new(m, r) @ new(r, n)
        case "relora":  # b stages, of which one is trained at a time
            B, A = new(m, r), new(r, n)
            return [B, A], B @ A + sum(new(m, r) @ new(r, n) for _ in range(b - 1))
        case "full":
            return [new(m, n)], new(m, n)
    raise AssertionError(method)


def nearest(size, wished):
    """The divisor above 1 that is nearest to a wished one."""
    return min((k for k in range(2, size + 1) if size % k == 0), key=lambda k: abs(k - wished))


def mixed(logits, bank):
    """Softmax of the two largest logits, times their vectors."""
    largest = np.argsort(logits, axis=-1)[..., -2:]
    weights = np.exp(np.take_along_axis(logits, largest, axis=-1))
    return np.einsum("...k,...kv->...v", weights / weights.sum(axis=-1, keepdims=True), bank[largest])


# m, n, r, blocks, experts
SIZES = [
    (24, 36, 3, 2, 2),
    (36, 24, 5, 4, 3),
    (16, 48, 1, 8, 3),
    (48, 16, 2, 16, 8),
    (30, 30, 7, 6, 1),
    (12, 12, 8, 3, 4),
]


def price(method, m, n, r, b=1, k=None):
    blocks = b if method in (*BLOCK_METHODS, "relora") else 1
    return cost(method, m, n, r, blocks=blocks, experts=k if method in EXPERT_METHODS else None)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("method", [*METHODS, *ALSO])
def test_parameters_and_rank_bound_are_those_of_random_factors(method, sizes):
    """Random factors reach the least upper bound: one that were too low or too high would show."""
    m, n, r, b, k = sizes
    if method in SPLIT:
        r = b * -(-r // b)
    trained, update = factors(method, m, n, r, b, k)
    found = price(method, m, n, r, b, k)
    assert found.parameters == sum(array.size for array in trained)
    assert update.shape == (m, n)
    assert found.rank_bound == np.linalg.matrix_rank(update)


def test_multiply_adds_by_hand():
    """m = 4, n = 6: y = Ax is 6r, z = By is 4r; the rest is what each method adds."""
    r = 2
    assert cost("lora", 4, 6, r).macs_per_token == 6 * r + 4 * r
    assert cost("melora", 4, 6, r, blocks=2).macs_per_token == 2 * (3 * r + 2 * r)
    assert cost("bora", 4, 6, r, blocks=2).macs_per_token == 6 * r + 2 * 2 * r + 4 * r
    assert cost("dora", 4, 6, r) == Cost(24, 6 * r + 4 * r + 4, 4, macs_per_pass=4 * 6 * r + 4 * 6)
    assert cost("hydralora", 4, 6, r).macs_per_token == 6 * r + 3 * (4 * r) + 3 * 6
    assert cost("moelora", 4, 6, r, experts=2).macs_per_token == 2 * (6 * r + 4 * r) + 2 * 6
    assert cost("sbora-fa", 4, 6, r).macs_per_token == 4 * r
    assert cost("sbora-fb", 4, 6, r).macs_per_token == 6 * r
    assert cost("adalora", 4, 6, r).macs_per_token == 6 * r + r + 4 * r
    assert cost("vera", 4, 6, r).macs_per_token == 6 * r + r + 4 * r + 4
    assert cost("pvera", 4, 6, r).macs_per_token == 6 * 2 * r + 2 * r + 4 * r + 4
    assert cost("shira", 400, 600, r) == Cost(32 * 1000, 32 * 1000, 400)
    assert cost("unilora", 4, 6, r) == Cost(0, 6 * r + 4 * r, 2)
    assert cost("adamss", 40, 60, r) == Cost(40 + 5 * r, 60 * r + 5 * r + 40, 2)
    assert cost("tlora", 4, 6, r) == Cost(6 * r + r + 4 * r, 2 * (6 * r + r + 4 * r), 4)
    assert cost("hira", 4, 6, r).macs_per_token == 4 * 6
    assert cost("gralora", 4, 6, r, blocks=2).macs_per_token == 2 * (3 * r + 2 * r)
    assert cost("delora", 4, 6, r) == Cost(6 * r + 4 * r + 1, 6 + 6 * r + r + 4 * r, 2, macs_per_pass=6 * r + 4 * r)
    assert cost("bdlora-a", 4, 6, r, blocks=2).macs_per_token == 2 * (3 * 1) + 4 * r
    assert cost("bdlora-b", 4, 6, r, blocks=2).macs_per_token == 6 * r + 2 * (2 * 1)
    # VB-LoRA: each number of A and B is a sum of two, once.
    assert cost("vblora", 4, 6, r) == Cost(6 * r + 4 * r, 6 * r + 4 * r, 2, macs_per_pass=2 * (6 * r + 4 * r))
    assert cost("miss", 4, 6, r).macs_per_token == 4 * r
    # C³A: gcd 2 in one or two pieces: blocks of 2×2, or of one number.
    assert cost("c3a", 4, 6, r) == Cost(2 * 3 * 2, 2 * 3 * 2, 4)
    assert cost("c3a", 4, 6, r, blocks=2) == Cost(4 * 6, 4 * 6, 4)
    assert cost("fourierft", 4096, 4096, r) == Cost(1000, 4096 * 4096, 2000)
    # LoHa: r² = 1 pays, r² = 4 does not.
    assert cost("loha", 4, 6, 1) == Cost(20, 4 + 6, 1, macs_per_pass=4 + 6)
    assert cost("loha", 4, 6, r) == Cost(40, 4 * 6, 4, macs_per_pass=2 * 4 * 6 * r + 4 * 6)
    # LoKr of 64×64: w1 and w2 are 8×8; x as 8×8. With r = 2, w2 = (8×2)(2×8).
    assert cost("lokr", 64, 64, 2) == Cost(64 + 32, 8 * (8 * 2 + 2 * 8) + 8 * 8 * 8, 16)
    assert cost("krona", 64, 64, 2) == cost("lokr", 64, 64, 4) == Cost(64 + 64, 8 * 64 + 8 * 64, 64)
    assert cost("bora", 4096, 4096, 8, blocks=16).flops_per_token == 2 * 67584


def test_what_all_matrices_share_is_counted_once():
    """By a budget, and in the totals of the command."""
    (found,) = within_budget([(64, 32)] * 3, 300, methods=["unilora"], at_least=0.5)[-1:]
    assert found.parameters == 256
    result = CliRunner().invoke(main, ["cost", "--model", "roberta-base", "--target", "qv", "--method", "unilora"])
    assert re.search(r"^total .* 24 +256 ", result.stdout, re.MULTILINE)
    assert "Uni-LoRA trains 256 numbers, once for all matrices." in result.stdout
    both = ["cost", "--model", "roberta-base", "--target", "qv", "--method", "unilora", "--method", "vblora"]
    assert re.search(r"^VB-LoRA +360,448 ", CliRunner().invoke(main, both).stdout, re.MULTILINE)  # 24 · 1536 · 8 + 256²


def test_lora_needs_m_plus_n_times_br_for_the_rank_of_bora():
    """§3.3 says (m+n)(b²r), which would be b times as many."""
    m, n, r, b = 64, 96, 2, 8
    target = cost("bora", m, n, r, blocks=b).rank_bound
    enough = next(k for k in range(1, m + 1) if cost("lora", m, n, k).rank_bound == target)
    assert cost("lora", m, n, enough).parameters == (m + n) * b * r


def test_updates_say_the_same_as_cost():
    rng = np.random.default_rng(3)
    m, n, r, b = 24, 36, 3, 4
    update = bora(rng.normal(size=(m, r)), rng.normal(size=(r, n)), rng.normal(size=(b, b, r)))
    found = update.facts
    assert Cost(found.parameters, found.macs_per_token, found.rank_bound) == cost("bora", m, n, r, blocks=b)
    minis = melora([rng.normal(size=(m // b, r))] * b, [rng.normal(size=(r, n // b))] * b).facts
    assert Cost(minis.parameters, minis.macs_per_token, minis.rank_bound) == cost("melora", m, n, r, blocks=b)


def test_the_catalogue_imports_the_standard_library_only():
    """So that ``--help`` is instant, and everything else may rest on it."""
    for path in Path(bora_analysis.catalogue.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= sys.stdlib_module_names, path
            elif isinstance(node, ast.ImportFrom) and node.level != 1:
                assert (node.module or "").partition(".")[0] in {*sys.stdlib_module_names, "extras", "patterns"}, path


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (("lorax", 4, 4, 1), {}, "'lorax' is unknown; known: lora, rslora, melora, bora, dora"),
        (("lora", 4, 4, 0), {}, "r is 0; expected at least 1"),
        (("lora", 0, 4, 1), {}, "m is 0; expected at least 1"),
        (("bora", 12, 18, 1), {"blocks": 4}, "b = 4 does not divide m = 12 and n = 18; b may be 1, 2, 3, 6"),
        (("melora", 12, 18, 1), {"blocks": 0}, "b may be 1, 2, 3, 6"),
        (("lora", 12, 18, 1), {"blocks": 2}, "blocks is 2, but lora has no blocks; methods with blocks: melora, bora"),
        (("bora", 12, 18, 1), {"experts": 2}, "methods with experts: hydralora, moelora"),
        (("moelora", 12, 18, 1), {"experts": 0}, "experts is 0"),
        (("gralora", 12, 18, 4), {"blocks": 3}, "gralora splits r among the blocks: r = 4 is not a multiple of 3"),
        (("c3a", 12, 18, 1), {"blocks": 4}, "b may be 1, 2, 3, 6"),
    ],
)
def test_impossible_wishes_are_refused_with_what_there_is(arguments, keywords, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        cost(*arguments, **keywords)
    assert "\n" not in str(caught.value)


# (model, target, method, r, b, #Params in millions as printed): Tables 1, 2 and 3, 4, 8, 9.
PAPER = [
    ("roberta-base", "QV", "lora", 8, 1, "0.29"),
    ("roberta-base", "QV", "lora", 16, 1, "0.59"),
    ("roberta-base", "QV", "lora", 32, 1, "1.18"),
    ("roberta-base", "QV", "dora", 8, 1, "0.31"),
    ("roberta-base", "QV", "melora", 8, 4, "0.29"),
    ("roberta-base", "QV", "hydralora", 4, 1, "0.35"),
    ("roberta-base", "QV", "bora", 8, 8, "0.31"),
    ("roberta-base", "QV", "bora", 8, 16, "0.34"),
    ("roberta-large", "QV", "lora", 8, 1, "0.79"),
    ("roberta-large", "QV", "lora", 32, 1, "3.15"),
    ("roberta-large", "QV", "dora", 8, 1, "0.84"),
    ("roberta-large", "QV", "hydralora", 4, 1, "0.93"),
    ("roberta-large", "QV", "bora", 8, 8, "0.81"),
    ("roberta-large", "QV", "bora", 8, 16, "0.88"),
    ("gemma-7b", "QKV", "lora", 8, 1, "4.82"),
    ("gemma-7b", "QKV", "lora", 32, 1, "19.3"),
    ("gemma-7b", "QKV", "dora", 8, 1, "5.16"),
    ("gemma-7b", "QKV", "melora", 8, 4, "4.82"),
    ("gemma-7b", "QKV", "hydralora", 4, 1, "5.94"),
    ("gemma-7b", "QKV", "bora", 8, 8, "4.86"),
    ("gemma-7b", "QKV", "bora", 8, 16, "4.99"),
    ("llama-3-8b", "QKV", "lora", 8, 1, "4.72"),
    ("llama-3-8b", "QKV", "dora", 8, 1, "4.92"),
    ("llama-3-8b", "QKV", "melora", 8, 4, "4.72"),
    ("llama-3-8b", "QKV", "hydralora", 4, 1, "5.11"),
    ("llama-3-8b", "QKV", "bora", 8, 8, "4.77"),
    ("llama-3-8b", "QKV", "bora", 8, 16, "4.92"),
    ("qwen2.5-14b", "QKV", "lora", 8, 1, "8.65"),
    ("qwen2.5-14b", "QKV", "lora", 16, 1, "17.3"),
    ("qwen2.5-14b", "QKV", "dora", 8, 1, "8.99"),
    ("qwen2.5-14b", "QKV", "hydralora", 4, 1, "9.29"),
    ("qwen2.5-14b", "QKV", "bora", 8, 8, "8.72"),
    ("qwen2.5-14b", "QKV", "bora", 8, 16, "8.95"),
    ("llama-3-8b", "Q", "lora", 8, 1, "2.10"),
    ("llama-3-8b", "Q", "bora", 8, 16, "2.16"),
    ("llama-3-8b", "QV", "lora", 8, 1, "3.41"),
    ("llama-3-8b", "QV", "bora", 8, 16, "3.54"),
    ("llama-3-8b", "QKVUD", "lora", 8, 1, "14.2"),
    ("llama-3-8b", "QKVUD", "bora", 8, 16, "14.5"),
    ("llama-3-8b", "QKVOGUD", "lora", 8, 1, "21.0"),
    ("llama-3-8b", "QKVOGUD", "bora", 8, 16, "21.4"),
    ("llama-3-8b", "QKV", "bora", 2, 2, "1.18"),
    ("llama-3-8b", "QKV", "bora", 2, 64, "1.97"),
    ("llama-3-8b", "QKV", "bora", 4, 4, "2.37"),
    ("llama-3-8b", "QKV", "bora", 8, 32, "5.51"),
    ("llama-3-8b", "QKV", "bora", 8, 64, "7.86"),
    ("llama-3-8b", "QKV", "bora", 16, 64, "15.7"),
    ("llama-3-8b", "QKV", "bora", 32, 16, "19.7"),
    ("llama-3-8b", "QKV", "lora", 64, 1, "37.7"),
    ("llama-3-8b", "QKV", "bora", 64, 2, "37.8"),
    ("llama-3-8b", "QKV", "bora", 64, 64, "62.9"),
]


@pytest.mark.parametrize(("model", "target", "method", "r", "b", "printed"), PAPER)
def test_parameters_of_the_papers_tables(model, target, method, r, b, printed):
    known = architecture(model)
    shapes = known.modules(chosen(target, known.projections)).values()
    total = sum(cost(method, m, n, r, blocks=b).parameters for m, n in shapes)
    assert f"{total / 1e6:.{len(printed.split('.')[1])}f}" == printed


sizes = st.integers(1, 600)


@given(sizes, sizes)
def test_best_b_is_the_best_of_all(m, n):
    found = optimal_blocks(m, n)
    curve = {b: (m + n) // b + b for b in range(1, min(m, n) + 1) if m % b == n % b == 0}
    assert found.valid == tuple(curve)
    assert blocks_curve(m, n, rank=3) == {b: 3 * value for b, value in curve.items()}
    assert found.best == tuple(b for b in curve if curve[b] == min(curve.values()))
    assert found.optimum == pytest.approx(sqrt(m + n))
    assert found.paper == isqrt(n)
    # Convex in b: the best valid ones are the neighbours of the real optimum.
    below, above = [b for b in curve if b <= found.optimum], [b for b in curve if b >= found.optimum]
    assert set(found.best) <= {max(below), min(above, default=max(below))}


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_the_curve_is_the_cost_of_bora_at_equal_rank(p, q, b, r):
    m, n = p * b, q * b
    assert optimal_blocks(m, n).parameters(b, rank=b * r) == cost("bora", m, n, r, blocks=b).parameters


def test_ties_are_named():
    assert optimal_blocks(4096, 4096).best == (64, 128)
    assert optimal_blocks(768, 768).best == (32, 48)
    assert optimal_blocks(768, 768).paper == 27  # the paper's rule gives no divisor here
    assert 27 not in optimal_blocks(768, 768).valid


def test_one_b_for_several_shapes():
    shapes = [(4096, 4096), (1024, 4096), (1024, 4096), (14336, 4096)]
    found = shared_blocks(shapes)
    total = {b: sum((m + n) // b + b for m, n in shapes) for b in common_divisors([1024, 4096, 14336])}
    assert found.valid == tuple(total)
    assert found.best == tuple(b for b in total if total[b] == min(total.values()))
    assert found.parameters(64, rank=5) == 5 * total[64]
    assert found.paper == 64
    assert shared_blocks([(8, 8), (8, 4)]).paper is None
    with pytest.raises(ValueError, match="expected at least one"):
        shared_blocks([])


def test_memory_of_adamw():
    assert memory(10, "float32").total == 160
    assert (memory(10, "float64").optimizer, memory(10, "float16").gradients) == (160, 20)
    assert memory(10, "bfloat16", master=True).total == 160  # ZeRO's 16 bytes
    with pytest.raises(ValueError, match="known: float64, float32, bfloat16, float16"):
        memory(10, "int8")
    with pytest.raises(ValueError, match="known: adamw, adamw-8bit, sgd-momentum, sgd"):
        memory(10, optimizer="adam")
    with pytest.raises(ValueError, match=r"known: .*int8, nf4, nf4-double"):
        frozen_bytes(4, 4, "int4")


class TestBudget:
    shapes = ((48, 48), (24, 48), (24, 48))

    def test_nothing_that_fits_is_missing(self):
        """Against every r there is: those on the grid, and the largest, must all be found, and nothing else."""
        budget, floor, expected = 4000, 0.6, {}
        methods = [method for method in METHODS if method not in ("lokr", *NO_RANK)]
        for method in methods:
            for b in (2, 3, 4, 6, 8, 12, 24) if method in BLOCK_METHODS else (1,):
                possible = range(1, 25) if method not in SPLIT else range(b, 25, b)
                each = {r: [cost(method, m, n, r, blocks=b).parameters for m, n in self.shapes] for r in possible}
                price: Any = CATALOGUE[method].cost
                once = price.shared
                fits = {r: sum(parts) + once for r, parts in each.items() if sum(parts) + once <= budget}
                for r, total in fits.items():
                    if total >= floor * budget and (r in (1, 2, 3, 4, 6, 8, 12, 16, 24) or r == max(fits)):
                        expected[method, r, b] = total
        found = within_budget(self.shapes, budget, methods=methods, at_least=floor)
        assert {(c.method, c.r, c.blocks): c.parameters for c in found} == expected
        assert len(found) == len(expected) > 10

    def test_lokr_stops_growing(self):
        """From 2r ≥ max(u, v) on w2 is whole, and only the first such r is listed."""
        found = within_budget([(64, 64)], 10**6, methods=["lokr"], at_least=0)
        assert [(c.r, c.parameters) for c in found] == [(4, 128), (3, 112), (2, 96), (1, 80)]

    def test_methods_without_r_are_listed_once(self):
        found = within_budget([(64, 32)], 10**6, methods=["c3a", "fourierft"], at_least=0)
        assert [(c.method, c.r, c.blocks, c.parameters) for c in found] == [
            ("c3a", 1, 2, 128), ("c3a", 1, 4, 256), ("c3a", 1, 8, 512), ("fourierft", 1, 1, 1000),
            ("c3a", 1, 16, 1024), ("c3a", 1, 32, 2048),
        ]  # fmt: skip
        with pytest.raises(ValueError, match=r"the nearest: fourierft with 1,000 and c3a b = 16 with 1,024$"):
            within_budget([(64, 32)], 1010, methods=["c3a", "fourierft"], at_least=1)

    def test_order_and_bounds(self):
        found = within_budget(self.shapes, 4000, methods=["bora", "lora"], at_least=0)
        assert [c.rank_bound for c in found] == sorted((c.rank_bound for c in found), reverse=True)
        for c in found:
            bounds = [cost(c.method, m, n, c.r, blocks=c.blocks).rank_bound for m, n in self.shapes]
            assert c.rank_bound == pytest.approx(np.mean(bounds))
            assert c.bound_per_parameter == pytest.approx(sum(bounds) / c.parameters)
            assert c.macs_per_token == c.parameters

    def test_nearest_is_named(self):
        with pytest.raises(ValueError, match=r"the nearest: lora r = 1 with 240$"):
            within_budget(self.shapes, 100, methods=["lora"])
        with pytest.raises(ValueError, match=r"500 to 500 .* lora r = 2 with 480 and lora r = 3 with 720$"):
            within_budget(self.shapes, 500, methods=["lora"], at_least=1)
        with pytest.raises(ValueError, match=r"nearest: bora r = 24, b = 24 with 47,232$"):
            within_budget(self.shapes, 10**9, methods=["bora"], at_least=1)

    def test_wrong_shares_and_budgets(self):
        with pytest.raises(ValueError, match="between 0 and 1"):
            within_budget(self.shapes, 100, at_least=1.5)
        with pytest.raises(ValueError, match="budget is 0"):
            within_budget(self.shapes, 0)


def saved_config(folder, kind, **settings):
    from transformers import AutoConfig

    AutoConfig.for_model(kind, **settings).save_pretrained(folder)
    return folder


class TestModels:
    def test_the_paper_s_are_data(self):
        assert matrices("LLAMA-3-8b")[:2] == [Matrices("q", 4096, 4096, 32), Matrices("k", 1024, 4096, 32)]
        for known in ARCHITECTURES.values():
            shapes = list(known.modules(tuple(known.projections)).values())
            assert len(shapes) == sum(part.layers for part in known.matrices())

    @pytest.mark.parametrize("name", ["roberta-base", "llama-3-8b", "gemma-7b", "qwen2.5-14b", "all-minilm-l6-v2"])
    def test_data_equal_what_transformers_builds(self, name, tmp_path):
        """The published sizes of each model, as its config.json gives them."""
        kind, settings = {
            "roberta-base": ("roberta", {}),
            "all-minilm-l6-v2": ("bert", {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}),
            "llama-3-8b": ("llama", {"intermediate_size": 14336, "num_key_value_heads": 8}),
            "gemma-7b": ("gemma", {}),
            "qwen2.5-14b": (
                "qwen2",
                {"hidden_size": 5120, "num_hidden_layers": 48, "intermediate_size": 13824,
                 "num_attention_heads": 40, "num_key_value_heads": 8},
            ),
        }[name]  # fmt: skip
        folder = saved_config(tmp_path, kind, **settings)
        assert sorted(matrices(str(folder))) == sorted(matrices(name))

    def test_fused_and_transposed(self, tmp_path):
        saved_config(tmp_path, "gpt2", n_embd=16, n_layer=3, n_head=2, vocab_size=40)
        found = matrices(str(tmp_path / "config.json"))
        assert found == [
            Matrices("qkv", 48, 16, 3), Matrices("o", 16, 16, 3), Matrices("up", 64, 16, 3), Matrices("down", 16, 64, 3)
        ]  # fmt: skip
        names = [part.projection for part in found]
        assert chosen("QKV", names) == ("qkv",)
        assert chosen("qkv,o", names) == ("qkv", "o")
        assert chosen("down", names) == ("down",)
        with pytest.raises(ValueError, match=r"q, v is not .* it has qkv, O \(o\), .* This model fuses q, v"):
            chosen("QV", names)

    def test_two_attentions_in_a_layer(self, tmp_path):
        saved_config(tmp_path, "t5", d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40)
        assert Matrices("q", 16, 16, 6) in matrices(str(tmp_path))  # two encoder layers, two decoder layers with two

    def test_what_cannot_be_read(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match=r"'bert' is unknown; known: roberta-base, .* config\.json"):
            matrices("bert")
        with pytest.raises(FileNotFoundError, match=r"no config\.json"):
            matrices(str(tmp_path))
        (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
        with pytest.raises(ValueError, match="its configuration cannot be used") as caught:
            matrices(str(tmp_path))
        assert "\n" not in str(caught.value)

        import transformers

        def offline(source):
            raise OSError(f"cannot connect for {source}\nand more lines")

        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
        result = run("--model", "org/name")
        assert result.exit_code == 1
        assert (
            result.stderr
            == "error: org/name: transformers cannot load its configuration: cannot connect for org/name\n"
        )

    def test_targets(self):
        known = architecture("llama-3-8b")
        assert chosen("QKVOGUD", known.projections) == ("q", "k", "v", "o", "gate", "up", "down")
        assert chosen("all", known.projections) == tuple(known.projections)
        assert chosen("gate,q", known.projections) == ("gate", "q")
        for wrong in ("x", "", "q,x"):
            with pytest.raises(ValueError, match=r"it has Q \(q\), K \(k\).* or all"):
                chosen(wrong, known.projections)


def run(*arguments):
    return CliRunner().invoke(main, ["cost", *map(str, arguments)])


def test_records_have_the_keys_and_add_up():
    result = run(
        "--model", "llama-3-8b", "--target", "qkv", "--method", "bora", "-r", 8, "--blocks", 16, "--format", "json"
    )
    assert result.exit_code == 0, result.stderr
    records = json.loads(result.stdout)
    assert all(tuple(record) == COST_COLUMNS for record in records)
    assert records[1] == {
        "model": "llama-3-8b", "projection": "k", "method": "bora", "r": 8, "blocks": 16, "out_features": 1024,
        "in_features": 4096, "layers": 32, "parameters": 1376256, "macs_per_token": 1376256, "rank_bound": 128,
        "macs_per_pass": 0, "overhead": 43008 / (1024 * 4096), "forward_flops": 2752512, "backward_flops": 7733248,
    }  # fmt: skip
    assert sum(record["parameters"] for record in records) == 4915200


def test_table_has_totals_memory_and_convention():
    result = run("--model", "llama-3-8b", "--method", "bora", "--blocks", 16, "--dtype", "bfloat16", "--master")
    lines = result.stdout.splitlines()
    assert lines[0] == "llama-3-8b, q k v: BoRA, r = 8, b = 16"
    assert lines[5].split() == ["total", "96", "4,915,200", "4,915,200", "0.61%", "128"]
    assert "weights 9.83 MB, gradients 9.83 MB, AdamW's moments and float32 copy 59 MB: 78.6 MB" in result.stdout
    assert "the paper's FLOPs; usual FLOPs are twice that: here 9,830,400" in " ".join(result.stdout.split())
    assert result.stderr == ""


def test_methods_side_by_side():
    both = run("--method", "lora", "--method", "bora", "--format", "csv")
    frame = pd.read_csv(StringIO(both.stdout))
    assert frame.groupby("method")["parameters"].sum().to_dict() == {"lora": 4718592, "bora": 4767744}
    assert frame["blocks"].tolist() == [1] * 3 + [8] * 3
    everything = run("--method", "all")
    assert everything.exit_code == 0
    rows = [line.split("  ")[0] for line in everything.stdout.splitlines()[2 : 2 + len(METHODS)]]
    assert rows == [method_look(method).label for method in METHODS]
    assert "VB-LoRA also trains a bank of 65,536 numbers" in everything.stdout
    plus = run("--method", "lora+", "--format", "csv").stdout
    assert plus == run("--method", "lora", "--format", "csv").stdout.replace(",lora,", ",lora+,")
    fewer = run("--method", "all", "-r", 4)
    assert fewer.exit_code == 0
    assert "note: GraLoRA, BD-LoRA-A, BD-LoRA-B are left out" in fewer.stderr
    assert "GraLoRA" not in fewer.stdout
    unranked = run("--method", "c3a", "--budget", "5M", "--at-least", 0, "--top", 1).stdout
    assert unranked.splitlines()[2].split()[:2] == ["C³A", "·"]


def test_methods_of_several_stages_are_known_by_name():
    shown = " ".join(
        run("--method", "pissa", "--method", "lora-ga", "--method", "relora", "--blocks", 4).stdout.split()
    )
    assert "r = 8, 4 stages" in shown
    assert "PiSSA 4,718,592 4,718,592 9,437,184 0.59% 16 75.5 MB" in shown  # ΔW = B A − B₀ A₀
    assert "ReLoRA 4,718,592 4,718,592 9,437,184 0.59% 32 75.5 MB" in shown
    for method in ("PiSSA: two: an SVD", "LoRA-GA: two: a gradient", "ReLoRA: one for each of --blocks"):
        assert f"Stages of {method}" in shown


def test_the_overhead_of_several_projections_is_that_of_their_sum():
    frame = pd.read_csv(StringIO(run("--method", "bora", "--method", "full", "--format", "csv").stdout))
    own = frame["out_features"] * frame["in_features"] * frame["layers"]
    assert frame["overhead"].tolist() == pytest.approx((frame["macs_per_token"] / own).tolist())
    total = run("--method", "bora").stdout.splitlines()[5].split()
    assert total[4] == f"{4767744 / (32 * 4096 * (4096 + 2 * 1024)):.2%}"


@pytest.mark.parametrize(
    ("options", "state", "total"),
    [
        (["adamw-8bit"], "AdamW's moments in 8 bits 9.68 MB", "47.8 MB"),
        (["sgd-momentum"], "momentum 19.1 MB", "57.2 MB"),
        (["sgd"], "gradients 19.1 MB: ", "38.1 MB"),
        (["sgd", "--dtype", "bfloat16", "--master"], "float32 copy 19.1 MB", "38.1 MB"),
    ],
)
def test_memory_by_optimizer(options, state, total):
    shown = " ".join(run("--optimizer", *options).stdout.split())
    assert state in shown
    assert f": {total} in" in shown


def test_budget_through_the_command_line(tmp_path):
    table = run("--budget", "4.72M", "--method", "lora", "--method", "bora", "--top", 2)
    assert table.exit_code == 0, table.stderr
    assert "the first 2 of" in table.stdout
    written = run("--budget", "4.72M", "--method", "lora", "--format", "parquet", "-o", tmp_path / "out.parquet")
    assert (written.stdout, written.stderr) == ("", "")
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert frame[["target", "method", "r", "parameters"]].values.tolist() == [["q k v", "lora", 8, 4718592]]
    for same in ("4718592", "4,718,592", "4718.592k", "0.004718592G"):
        assert run("--budget", same, "--at-least", 1, "--method", "lora").exit_code == 0


def test_optimal_blocks_through_the_command_line():
    table = run("--optimal-blocks").stdout
    rows = [line.split("  ") for line in table.splitlines()]
    assert any("64, 128 (tie)" in " ".join(row) for row in rows)
    records = json.loads(run("--optimal-blocks", "--model", "roberta-base", "--format", "json").stdout)
    best = [record["blocks"] for record in records if record["best"]]
    assert best == [32, 48]
    assert {(record["paper_rule"], record["paper_rule_valid"]) for record in records} == {(27, False)}
    assert next(record["parameters_per_rank"] for record in records if record["blocks"] == 32) == 1536 / 32 + 32
    shared = json.loads(run("--optimal-blocks", "--format", "json").stdout)
    assert {record["blocks"] for record in shared if record["projection"] == "all" and record["best"]} == {64}
    assert all(record["out_features"] is None for record in shared if record["projection"] == "all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "known: roberta-base, roberta-large, gemma-7b"),
        (["--target", "qx"], "it has Q (q), K (k), V (v)"),
        (["--method", "nothing"], "known: lora, rslora, melora"),
        (["-r", 1025], "r may be 1 to 1024"),
        (["--blocks", 7], "b may be 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024"),
        (["--budget", 10], "the nearest: psoft r = 1 with 192"),
        (["--budget", "5X"], "expected e.g. 4718592, 500k or 4.72M"),
        (["--budget", "0"], "expected e.g. 4718592, 500k or 4.72M"),
        (["--budget", "5M", "-r", 8], "leave out -r"),
        (["--optimal-blocks", "--method", "lora"], "leave out --method"),
        (["--method", "lora", "--blocks", 2], "--blocks is for melora and bora and gralora"),
        (["--method", "lora", "--experts", 2], "--experts is for hydralora and moelora"),
        (["--format", "parquet"], "add -o FILE"),
    ],
)
def test_wrong_usage_is_told_what_would_be_right(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    error = " ".join(result.stderr.split("Error: ")[1].split())
    assert message in error


def test_r_that_some_methods_allow():
    """VeRA is used with r above the full rank (1024 for RoBERTa in its paper)."""
    assert run("--model", "roberta-base", "--method", "vera", "-r", 1024).exit_code == 0
