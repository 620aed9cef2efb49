"""Singular values against scipy's dense SVD, and what happens around them: threads, solvers, devices, fall-backs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping

import numpy as np
import pytest
import scipy.linalg
from cases import STRUCTURES, updates
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_analysis import bora, each_spectrum, factor_ranks, lora, melora, singular_values
from bora_analysis.analysis import spectrum as engine
from bora_analysis.linalg import solvers
from bora_analysis.linalg.solvers import solve, solve_cpu, solve_torch
from bora_analysis.linalg.threads import one_blas_thread
from bora_analysis.metrics import METRICS
from bora_analysis.updates import sums


def norms(update) -> float:
    """‖B'‖‖Σ'‖‖A'‖."""
    return float(np.prod([np.linalg.norm(factor, 2) for factor in update.expanded()]))


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=1000)
@given(data=st.data())
def test_within_1e_12_of_the_dense_svd(structure, data):
    update, dense = data.draw(updates(structure))
    spectrum = singular_values(update, solver="svd")
    expected = scipy.linalg.svdvals(dense)
    bound = update.facts.rank_bound
    tolerance = 1e-12 * norms(update)
    assert spectrum.values.shape == (bound,)
    assert (np.diff(spectrum.values) <= 0).all()
    assert np.abs(spectrum.values - expected[:bound]).max() <= tolerance
    assert np.abs(expected[bound:]).max(initial=0) <= tolerance  # the values that we leave out are zeros
    assert np.isclose(np.sum(spectrum.values**2), np.linalg.norm(dense) ** 2, rtol=1e-10, atol=tolerance**2)


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=200)
@given(data=st.data())
def test_gram_is_within_its_own_bound(structure, data):
    update, dense = data.draw(updates(structure))
    spectrum = singular_values(update, solver="gram")
    expected = scipy.linalg.svdvals(dense)[: update.facts.rank_bound]
    assert spectrum.solver == "gram"
    assert np.abs(spectrum.values - expected).max() <= 1e-7 * norms(update)


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=50)
@given(data=st.data())
def test_torch_path_agrees(structure, data):
    """The GPU's code on torch's CPU device: same cores, same drivers' interface."""
    pytest.importorskip("torch")
    update, _ = data.draw(updates(structure))
    for core in update.cores():
        solved = solve_torch(core, "float64", "svd", "cpu")
        size = np.abs(core).max()
        np.testing.assert_allclose(solved.values, np.linalg.svd(core, compute_uv=False), rtol=0, atol=1e-12 * size * 40)


def test_many_equal_one_by_one_whatever_the_batches(monkeypatch):
    rng = np.random.default_rng(0)
    many = {}
    for i in range(40):
        m, n, r = rng.choice([24, 48]), rng.choice([24, 72]), int(rng.integers(1, 5))
        B, A = rng.standard_normal((m, r)), rng.standard_normal((r, n))
        many[f"lora.{i}"] = lora(B, A)
        many[f"bora.{i}"] = bora(B, A, rng.standard_normal((4, 4, r)))
        many[f"melora.{i}"] = melora(np.split(B, 4), np.split(A, 4, axis=1))
    one = {name: singular_values(update).values for name, update in many.items()}
    for size, workers in ((1, 1), (1, 3), (1 << 12, 2), (1 << 30, 2)):
        monkeypatch.setattr(engine, "BATCH_BYTES", size)
        found = {name: (facts, spectrum) for name, facts, spectrum in each_spectrum(many, workers=workers)}
        assert found.keys() == many.keys()
        for name, (facts, spectrum) in found.items():
            assert facts is many[name].facts
            np.testing.assert_array_equal(spectrum.values, one[name])


@pytest.mark.parametrize("cached", [sums.CACHED, 1], ids=["as they are", "without their factors"])
def test_updates_reduced_together_are_as_alone_to_the_bit(monkeypatch: pytest.MonkeyPatch, cached: int):
    """One that is zero, nearly dependent, or out of range leaves the others as they are."""
    monkeypatch.setattr(sums, "CACHED", cached)
    rng = np.random.default_rng(1)
    many = {}
    for i in range(30):
        B, A = rng.standard_normal((300, 4)).astype(np.float32), rng.standard_normal((4, 400)).astype(np.float32)
        many[f"plain.{i}"] = lora(B, A, scaling=0.5 + i)
        many[f"bora.{i}"] = bora(B, A, rng.standard_normal((2, 2, 4)))
        many[f"melora.{i}"] = melora(np.split(B, 2), np.split(A, 2, axis=1))
    for i, (m, n) in enumerate([(2000, 1100), (1100, 2000), (6000, 5), (1024, 2048)]):  # other sizes in the same calls
        many[f"mixed.{i}"] = lora(rng.standard_normal((m, 8)), rng.standard_normal((8, n)))
    tall = rng.standard_normal((5000, 8))  # whose triangles come from Gram matrices
    dependent = tall + 0.0
    dependent[:, 7] = dependent[:, 6] * (1 + 1e-15)
    for i, B in enumerate((tall, 0 * tall, dependent, 1e-200 * tall, 1e200 * tall, tall[:, ::-1])):
        many[f"tall.{i}"] = lora(B, rng.standard_normal((8, 40)), scaling=1e-200 if i == 4 else 1.0)
        many[f"flat.{i}"] = lora(rng.standard_normal((40, 8)), B.T, scaling=1e-200 if i == 4 else 1.0)
        many[f"both.{i}"] = lora(B, tall[:1100].T, scaling=1e-200 if i == 4 else 1.0)
    many["lost"] = lora(1e-200 * tall, 1e-200 * tall.T)
    for order in (list(many), list(many)[::-1]):
        found = {name: spectrum for name, _, spectrum in each_spectrum({name: many[name] for name in order}, workers=1)}
        for name, spectrum in found.items():
            alone = singular_values(many[name])
            np.testing.assert_array_equal(spectrum.values, alone.values, err_msg=name)
            assert (spectrum.noise_floor, spectrum.reach, spectrum.solver, spectrum.underflows) == (
                alone.noise_floor, alone.reach, alone.solver, alone.underflows
            ), name  # fmt: skip
            dense = np.linalg.svd(many[name].to_dense(), compute_uv=False)[: len(alone)]
            np.testing.assert_allclose(spectrum.values, dense, rtol=0, atol=1e-11 * dense[0])


def test_small_modules_are_left_to_one_worker_and_large_ones_are_not():
    """Two threads that take turns in Python need longer than one."""
    large = lora(np.ones((9000, 64)), np.ones((64, 9000)))
    threads = {"small": set(), "large": set()}

    class Told(dict):
        def __getitem__(self, name):
            threads[name[:5]].add(threading.get_ident())
            return super().__getitem__(name)

    small = Told((f"small.{i}", lora(np.ones((8, 1)), np.ones((1, 8)))) for i in range(400))
    assert len(list(each_spectrum(small, workers=3))) == 400
    assert len(threads["small"]) == 1
    both = Told(small | {f"large.{i}": large for i in range(12)})
    assert sorted(name for name, *_ in each_spectrum(both, workers=3)) == sorted(both)
    assert len(threads["large"]) > 1
    threads["small"].clear()
    few = Told(list(small.items())[:12])
    assert len(list(each_spectrum(few, workers=1))) == 12
    assert threads["small"] == {threading.get_ident()}


def test_nothing_to_do():
    assert list(each_spectrum({})) == []


class Lazy(Mapping):
    """Counts how many updates are alive at once."""

    def __init__(self, count):
        self.count, self.loads, self.lock = count, [], threading.Lock()

    def __iter__(self):
        return (str(i) for i in range(self.count))

    def __len__(self):
        return self.count

    def __getitem__(self, name):
        with self.lock:
            self.loads.append(name)
        return lora(np.full((8, 1), float(name)), np.ones((1, 8)))


def test_modules_are_loaded_once_and_not_far_ahead():
    lazy = Lazy(200)
    seen = 0
    for _ in each_spectrum(lazy, workers=2):
        seen += 1
    assert seen == 200
    assert sorted(lazy.loads, key=int) == list(lazy)


class Large(Lazy):
    """Updates of which some keep few of their digits in a Gram matrix; how many are alive at once."""

    def __init__(self, count):
        super().__init__(count)
        self.given, self.most = [], 0

    def __getitem__(self, name):
        with self.lock:
            self.loads.append(name)
            self.most = max(self.most, 1 + sum(each() is not None for each in self.given))
        B, A = (np.random.default_rng([int(name), k]).standard_normal((4096, 16)) for k in (0, 1))
        if int(name) % 10 == 7:
            B[:, 3] = B[:, 5] * (1 + 1e-15)
        if int(name) % 10 == 5:
            B *= 0.0
        update = lora(B, A.T)
        self.given.append(weakref.ref(update))
        return update


def test_large_factors_are_let_go_and_asked_for_again_where_they_are_needed():
    large = Large(40)
    spectra = {name: spectrum for name, _, spectrum in each_spectrum(large, workers=1)}
    assert sorted(large.loads, key=int) == sorted([*large, "7", "17", "27", "37"], key=int)
    assert large.most <= 2 + 4  # the one before ends when the next is there; those with B = 0 stay
    assert not spectra["5"].values.any()
    np.testing.assert_array_equal(spectra["7"].values, singular_values(large["7"]).values)
    assert spectra["7"].values[15] < 1e-9 < spectra["3"].values[15]


def test_an_error_in_one_module_ends_the_run_and_no_thread_stays():
    class Broken(Lazy):
        def __getitem__(self, name):
            if name == "17":
                raise ValueError("module 17")
            return super().__getitem__(name)

    broken = Broken(5000)
    before = threading.active_count()
    with pytest.raises(ValueError, match="module 17"):
        list(each_spectrum(broken, workers=2))
    assert len(broken.loads) < 100
    assert threading.active_count() == before


def test_a_caller_may_stop_early():
    lazy = Lazy(5000)
    run = each_spectrum(lazy, workers=2)
    next(run)
    run.close()
    assert len(lazy.loads) < 5000


@pytest.mark.parametrize("size", [8, 600])
def test_one_update_is_solved_with_one_thread_whatever_its_size(size, monkeypatch):
    from threadpoolctl import threadpool_info

    seen, usual = [], solve

    def spy(*arguments):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return usual(*arguments)

    monkeypatch.setattr(engine, "solve", spy)
    singular_values(full_rank(np.float32, size=size))
    assert set(seen) == {1}


def test_large_gram_matrices_go_to_torch_on_one_thread(monkeypatch):
    import torch

    update = full_rank(np.float32, size=600)
    expected = singular_values(update, solver="gram", device="cpu")
    seen, solve = [], torch.linalg.eigvalsh

    def spy(matrix):
        seen.append(torch.get_num_threads())
        return solve(matrix)

    monkeypatch.setattr(solvers, "TORCH_FROM", 512)
    monkeypatch.setattr(torch.linalg, "eigvalsh", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = singular_values(update, solver="gram", device="cpu")
        list(each_spectrum({"a": update, "b": update}, solver="gram", device="cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1] or seen == [1, 1, 1]  # one for both where they are solved in a batch
    np.testing.assert_allclose(found.values, expected.values, atol=1e-8 * expected.values[0])


def test_blas_threads_are_limited_while_running_and_restored_after():
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    threadpool_limits(2, user_api="blas")  # the dashboard's tests leave this process at one
    before = threads()
    with one_blas_thread(), one_blas_thread():
        assert set(threads()) == {1}
    assert threads() == before
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with one_blas_thread():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    with one_blas_thread():
        other.start()
        entered.wait(10)
    assert set(threads()) == {1}  # the other thread is still inside
    leave.set()
    other.join()
    threadpool_limits(max(before), user_api="blas")  # see _BlasLimit: the other thread may not lift what this one set
    assert threads() == before


def test_zero_update_has_rank_zero_in_every_metric():
    rng = np.random.default_rng(0)
    A, sigma = rng.standard_normal((2, 12)), rng.standard_normal((3, 3, 2))
    zero = np.zeros((9, 2))
    for update in (lora(zero, A), bora(zero, A, sigma), melora(np.split(zero, 3), np.split(A, 3, axis=1))):
        values = singular_values(update).values
        assert not values.any()
        for name, column in METRICS.items():
            value = column.value(values, update.facts.rank_bound, 0.005)
            if name == "condition":
                assert np.isnan(value)
            elif name == "rank_bound":
                assert value == update.facts.rank_bound
            else:
                assert value == 0, name
    assert factor_ranks(lora(zero, A)).upper == 0


def full_rank(dtype, size=600, least=1e-2):
    """A core of the size at which "auto" thinks of the Gram matrix, with singular values from 1 down to ``least``."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    return lora((U * np.geomspace(1, least, size)).astype(dtype), V.astype(dtype))


def test_auto_takes_gram_only_where_its_error_is_below_the_stored_rounding():
    with_gram = full_rank(np.float32)
    spectrum = singular_values(with_gram)
    assert spectrum.solver == "gram"
    exact = scipy.linalg.svdvals(with_gram.to_dense())
    assert np.abs(spectrum.values - exact).max() <= 2.0**-23  # ε_float32 · σ₁
    assert singular_values(full_rank(np.float64)).solver == "svd"
    assert singular_values(full_rank(np.float32, least=1e-7)).solver == "svd"
    assert singular_values(full_rank(np.float32, size=100)).solver == "svd"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"solver": "lanczos"}, ["lanczos", "auto, svd, gram"]),
        ({"device": "tpu"}, ["tpu", "cuda:k"]),
        ({"device": "cuda:x"}, ["cuda:x"]),
        ({"device": "cuda:99"}, ["cuda:99", "CUDA devices"]),
    ],
)
def test_impossible_wishes_are_named(options, parts):
    with pytest.raises(ValueError, match=r"expected|asked") as caught:
        singular_values(lora(np.ones((3, 1)), np.ones((1, 3))), **options)
    assert all(part in str(caught.value) for part in parts)


def test_solver_that_does_not_converge_falls_back_to_gesvd(monkeypatch):
    def refuse(*args, **options):
        raise np.linalg.LinAlgError("SVD did not converge")

    expected = singular_values(full_rank(np.float64, size=20)).values
    monkeypatch.setattr(np.linalg, "svd", refuse)
    spectrum = singular_values(full_rank(np.float64, size=20))
    assert spectrum.solver == "svd (gesvd)"
    np.testing.assert_allclose(spectrum.values, expected, rtol=1e-12)


class TestGpuFallBacks:
    """What a GPU can refuse, played by torch's CPU device."""

    @pytest.fixture
    def stack(self):
        pytest.importorskip("torch")
        return np.random.default_rng(0).standard_normal((5, 6, 4))

    def test_out_of_memory_makes_smaller_chunks(self, stack, monkeypatch):
        import torch

        sizes, original = [], torch.linalg.svdvals

        def limited(cores, **options):
            sizes.append(len(cores))
            if len(cores) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(cores, **options)

        monkeypatch.setattr(torch.linalg, "svdvals", limited)
        solved = solve_torch(stack, "float64", "svd", "cpu")
        assert sizes == [5, 3, 2, 2, 1]
        assert (solved.solver, solved.device) == ("svd", "cpu")
        np.testing.assert_allclose(solved.values, np.linalg.svd(stack, compute_uv=False), rtol=1e-12)

    def test_then_the_cpu(self, stack, monkeypatch):
        import torch

        def full(*args, **options):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(torch.linalg, "svdvals", full)
        solved = solve_torch(stack, "float64", "svd", "cpu")
        assert solved.device == "cpu (cpu: out of memory)"
        np.testing.assert_allclose(solved.values, np.linalg.svd(stack, compute_uv=False), rtol=1e-12)

    def test_no_convergence_tries_another_driver_and_then_the_cpu(self, stack, monkeypatch):
        import torch

        calls, original = [], torch.linalg.svdvals

        def first_fails(cores, **options):
            calls.append(options)
            if "driver" not in options:
                raise torch.linalg.LinAlgError(  # pyright: ignore[reportPrivateImportUsage]
                    "did not converge"
                )
            return original(cores)

        monkeypatch.setattr(torch.linalg, "svdvals", first_fails)
        solved = solve_torch(stack, "float64", "svd", "cpu")
        assert (solved.solver, solved.device, len(calls)) == ("svd (gesvd)", "cpu", 2)

        def never(*args, **options):
            raise torch.linalg.LinAlgError(  # pyright: ignore[reportPrivateImportUsage]
                "did not converge"
            )

        monkeypatch.setattr(torch.linalg, "svdvals", never)
        assert solve_torch(stack, "float64", "svd", "cpu").device == "cpu (cpu: no convergence)"

    def test_auto_goes_to_the_gpu_only_with_large_cores(self, monkeypatch):
        import torch

        places = []

        def spy(stack, dtype, solver, device):
            places.append((stack.shape[1:], device))
            return solve_cpu(stack, dtype, solver)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(solvers, "GPU_FROM", 64)
        monkeypatch.setattr(solvers, "solve_torch", spy)
        rng = np.random.default_rng(0)
        for r in (8, 64):
            singular_values(lora(rng.standard_normal((80, r)), rng.standard_normal((r, 90))))
        assert places == [((64, 64), "cuda:0")]


@pytest.mark.cuda
class TestCuda:
    """The same numbers on a real GPU."""

    @pytest.fixture(autouse=True)
    def _device(self):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")

    @pytest.mark.parametrize("solver", ["svd", "gram", "auto"])
    def test_agrees_with_the_cpu(self, solver):
        rng = np.random.default_rng(0)
        B, A = (rng.standard_normal(shape).astype(np.float32) for shape in ((2048, 16), (16, 2048)))
        update = bora(B, A, rng.standard_normal((128, 128, 16)).astype(np.float32))
        ours = singular_values(update, device="cuda", solver=solver)
        exact = singular_values(update, device="cpu", solver="svd").values
        assert ours.device == "cuda:0"
        assert np.abs(ours.values - exact).max() <= (1e-10 if solver == "svd" else 1e-6) * exact[0]
        assert singular_values(update).device == "cuda:0"

    def test_many(self):
        rng = np.random.default_rng(0)
        many = {str(i): lora(rng.standard_normal((64, 4)), rng.standard_normal((4, 64))) for i in range(50)}
        for name, _, spectrum in each_spectrum(many, device="cuda"):
            np.testing.assert_allclose(spectrum.values, singular_values(many[name]).values, rtol=1e-10)

    @pytest.mark.parametrize("r", [128, 1024])
    def test_large_factors_are_reduced_there(self, r):
        rng = np.random.default_rng(0)
        B, A = (rng.standard_normal(shape).astype(np.float32) for shape in ((4096, r), (r, 2048)))
        B[:, 3] = B[:, 5]  # left to the CPU
        for update in (lora(B, A), lora(A.T, B.T[:, :4000])):
            found, exact = singular_values(update, device="cuda"), singular_values(update, device="cpu")
            np.testing.assert_allclose(found.values, exact.values, rtol=0, atol=1e-11 * exact.values[0])
