"""The trainer computes what the stock model computes, and a resumed run is the run that was never interrupted."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import OlmoeForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))

from training import kernels
from training.data import Sampler, Tokens, Windows
from training.engines import KernelEngine, StockEngine
from training.evaluate import windows_of
from training.export import save_model
from training.model import Batch, FastModel, initialize, make_config, parameter_shapes, views
from training.train import Budget, Recipe, Training, run

BUILDS = pytest.mark.skipif(not kernels.available(), reason="needs g++ and AVX2")


def needs_kernels(test):
    """Slow: the kernels are built first."""
    return pytest.mark.slow(BUILDS(test))


BALANCE, Z_LOSS = 0.1, 0.01


@pytest.fixture
def config():
    return make_config(
        vocab_size=64, hidden_size=64, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_experts=16,
        num_experts_per_tok=4, max_position_embeddings=256,
    )  # fmt: skip


@pytest.fixture
def flat(config):
    torch.manual_seed(0)
    parameters = initialize(config, seed=1)
    return parameters + 0.05 * torch.randn_like(parameters)  # so that norms' weights differ from 1


@pytest.fixture
def batch(config):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([0, 7, 64, 33, 100, 1])
    ids_T = torch.randint(0, config.vocab_size, (int(lengths.sum()),), dtype=torch.int32, generator=generator)
    starts = lengths.cumsum(0).int()
    targets_T = ids_T.roll(-1)
    targets_T[starts[1:].long() - 1] = -1
    return Batch(ids_T, targets_T, starts)


def stock_model(config, flat) -> OlmoeForCausalLM:
    model = OlmoeForCausalLM(config).float()
    weights = views(flat, parameter_shapes(config))
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    return model


def stock_losses(model, batch):
    """Loss, balance loss and z-loss by the definitions, one document at a time, one layer at a time.

    The latter two are functions of the routers' weights: what routers read is a constant to them.
    """
    config = model.config
    nats, logits_of = 0.0, [[] for _ in range(config.num_hidden_layers)]
    read = {}
    for layer, block in enumerate(model.model.layers):
        block.mlp.gate.register_forward_pre_hook(lambda module, inputs, n=layer: read.update({n: inputs[0].detach()}))
    for start, end in zip(batch.starts[:-1], batch.starts[1:], strict=True):
        out = model(batch.ids_T[start:end].long()[None], output_router_logits=True)
        for layer, block in enumerate(model.model.layers):
            logits = read[layer].reshape(-1, config.hidden_size) @ block.mlp.gate.weight.T
            torch.testing.assert_close(logits, out.router_logits[layer].reshape(-1, config.num_experts))
            logits_of[layer].append(logits)
        log_p = out.logits[0].log_softmax(-1)
        for t, target in enumerate(batch.targets_T[start:end].tolist()):
            nats = nats - (log_p[t, target] if target >= 0 else 0.0)
    balance, z_loss = 0.0, 0.0
    for parts in logits_of:
        logits_TE = torch.cat(parts)
        p_TE = logits_TE.softmax(-1)
        chosen_TE = (p_TE >= p_TE.sort(-1).values[:, [-config.num_experts_per_tok]]).float()
        for e in range(config.num_experts):
            balance = balance + config.num_experts * chosen_TE[:, e].mean() * p_TE[:, e].mean()
        z_loss = z_loss + logits_TE.logsumexp(-1).square().mean()
    layers = config.num_hidden_layers
    return nats / (batch.targets_T >= 0).sum(), balance / layers, z_loss / layers


@needs_kernels
def test_kernels_equal_the_stock_model_to_float_precision(config, flat, batch):
    model = FastModel(config, flat, exact=True)
    num_targets, num_tokens = int((batch.targets_T >= 0).sum()), len(batch.ids_T)
    nats, _, counts_LE = model.forward_backward(batch, num_targets, num_tokens, None, BALANCE, Z_LOSS)

    stock = stock_model(config, flat)
    loss, balance, z_loss = stock_losses(stock, batch)
    (loss + BALANCE * balance + Z_LOSS * z_loss).backward()
    assert nats / num_targets == pytest.approx(loss.item(), abs=1e-5)
    assert counts_LE.sum(-1).tolist() == [num_tokens * config.num_experts_per_tok] * config.num_hidden_layers
    for name, parameter in stock.named_parameters():
        difference = (model.grads[name] - parameter.grad).norm() / parameter.grad.norm()
        assert difference < 1e-4, name

    hidden_TM = model.forward(batch)
    logits_TV = stock.lm_head(stock.model.norm(hidden_TM))
    for start, end in zip(batch.starts[:-1], batch.starts[1:], strict=True):
        expected = stock(batch.ids_T[start:end].long()[None]).logits[0]
        torch.testing.assert_close(logits_TV[start:end], expected, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_kernels_in_bfloat16_stay_near(config, flat, batch):
    exact, fast = FastModel(config, flat, exact=True), FastModel(config, flat)
    num_targets = int((batch.targets_T >= 0).sum())
    # without the balance loss: a token at a tie may choose other experts, and no more than that should differ
    for model in (exact, fast):
        model.nats = model.forward_backward(batch, num_targets, len(batch.ids_T), None, 0.0, 0.0)[0]
    assert fast.nats == pytest.approx(exact.nats, rel=2e-3)
    cosine = torch.cosine_similarity(exact.flat_grad, fast.flat_grad, dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("kind", [pytest.param("kernels", marks=[BUILDS, pytest.mark.slow]), "stock"])
def test_balance_and_z_loss_leave_alone_what_routers_read(config, flat, batch, kind):
    """With them and without, all gradients but the routers' are the same, so neither can turn a norm down."""

    def gradients(balance, z_loss):
        if kind == "kernels":
            model = FastModel(config, flat, exact=True)
            model.forward_backward(batch, 100, len(batch.ids_T), None, balance, z_loss)
            return {name: tensor.clone() for name, tensor in model.grads.items()}
        engine = StockEngine(config, seed=1)
        engine.model.load_state_dict(views(flat, parameter_shapes(config)), strict=False)
        nats, balance_loss, z, _ = engine.losses(batch, None)
        (nats / 100 + balance * balance_loss + z_loss * z).backward()
        return {name: parameter.grad for name, parameter in engine.model.named_parameters()}

    without, with_both = gradients(0.0, 0.0), gradients(10.0, 1.0)
    for name, gradient in without.items():
        if "mlp.gate" in name:
            assert (with_both[name] - gradient).norm() > gradient.norm()
        else:
            torch.testing.assert_close(with_both[name], gradient, msg=name)


def test_stock_engine_has_the_per_layer_balance_loss(config, flat, batch):
    engine = StockEngine(config, seed=1)
    engine.model.load_state_dict(views(flat, parameter_shapes(config)), strict=False)
    nats, balance, z_loss, _ = engine.losses(batch, None)
    found = torch.stack([nats / (batch.targets_T >= 0).sum(), balance, z_loss])
    expected = torch.stack(list(stock_losses(stock_model(config, flat), batch)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_both_engines_take_the_same_step(config, batch):
    kernel, stock = KernelEngine(config, seed=3, shards=1, exact=True), StockEngine(config, seed=3)
    before = {name: tensor.clone() for name, tensor in kernel.weights().items()}
    for _ in range(2):
        results = [e.step([batch], 1e-3, None, BALANCE, Z_LOSS) for e in (kernel, stock)]
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-4)
        assert results[0][2] == pytest.approx(results[1][2], rel=1e-3)
    for name, tensor in stock.weights().items():
        moved = kernel.weights()[name] - before[name]
        assert torch.cosine_similarity(moved.flatten(), (tensor - before[name]).flatten(), dim=0) > 0.99, name


@needs_kernels
@pytest.mark.parametrize("kernels_first", [True, False])
def test_a_run_goes_on_with_the_other_engine(config, batch, tmp_path, kernels_first):
    """Two steps by one engine and one by the other, through a checkpoint, against three steps by the first."""
    engines = [KernelEngine(config, seed=3, shards=1, exact=True), StockEngine(config, seed=3)]
    first, second = engines if kernels_first else engines[::-1]
    for _ in range(2):
        first.step([batch], 1e-3, None, BALANCE, Z_LOSS)
    torch.save(first.state(), tmp_path / "state.pt")
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    before = {name: tensor.clone() for name, tensor in first.weights().items()}
    results = [engine.step([batch], 1e-3, None, BALANCE, Z_LOSS) for engine in (first, second)]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-4)
    assert first.state()["step"] == second.state()["step"] == 3
    for name, tensor in second.weights().items():
        moved = first.weights()[name] - before[name]
        assert moved.abs().max() > 0
        assert torch.cosine_similarity(moved.flatten(), (tensor - before[name]).flatten(), dim=0) > 0.99, name


def make_domains(config) -> dict[str, Tokens]:
    generator = np.random.default_rng(0)
    out = {}
    for name, longest in (("short", 40), ("long", 600)):
        lengths = generator.integers(2, longest, size=30)
        ids = generator.integers(1, config.vocab_size, size=lengths.sum()).astype(np.uint16)
        bounds = np.cumsum([0, *lengths])
        ids[bounds[1:] - 1] = 0
        out[name] = Tokens(ids, bounds)
    return out


def train(config, folder, tokens, stock):
    recipe = Recipe(warmup_steps=3, stages=((0.0, 32, 100), (0.5, 64, 100)))
    engine = StockEngine(config, 0) if stock else KernelEngine(config, 0, shards=2)
    training = Training(engine, Sampler(make_domains(config), 0), recipe, shards=1 if stock else 2)
    if (folder / "checkpoint.pt").exists():
        training.load(folder / "checkpoint.pt")
    run(training, Budget(tokens=tokens), folder)
    return training


@pytest.mark.parametrize("stock", [pytest.param(False, marks=[pytest.mark.slow, BUILDS]), True])
def test_a_resumed_run_is_the_uninterrupted_run(config, tmp_path, monkeypatch, request, stock):
    """Bit for bit, also across a change of window length; the first run is stopped as SIGTERM stops it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, the stock model's gradients are sums in no fixed order
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    monkeypatch.setattr("signal.signal", lambda number, action: actions.update({number: action}))
    actions = {}
    whole = train(config, tmp_path / "whole", 4000, stock)

    once = Training.step

    def stop_after_six(self, progress):
        if self.steps == 6:
            actions[15](15, None)
        return once(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stop_after_six)
        assert train(config, tmp_path / "cut", 4000, stock).steps == 7
    resumed = train(config, tmp_path / "cut", 4000, stock)
    assert (resumed.steps, resumed.tokens) == (whole.steps, whole.tokens)
    for name, tensor in whole.engine.weights().items():
        assert torch.equal(tensor, resumed.engine.weights()[name]), name
    assert torch.equal(whole.load_LE, resumed.load_LE)
    assert whole.sampler.state() == resumed.sampler.state()


def test_a_paused_run_takes_no_step_and_a_killed_one_leaves_no_step_twice_in_its_log(config, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda number, action: None)
    train(config, tmp_path, 1000, stock=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "snapshots.jsonl").read_text().splitlines()]
    later = {"step": steps[-1] + 10, "tokens": 10**9, "progress": 0.5}
    with (tmp_path / "snapshots.jsonl").open("a") as file:
        file.write(json.dumps(later) + '\n{"step": 3')  # done after the last checkpoint, and cut off by a kill

    pauses = []
    monkeypatch.setattr("time.sleep", lambda seconds: pauses.append(seconds) or (tmp_path / "PAUSE").unlink())
    (tmp_path / "PAUSE").touch()
    once = Training.step

    def step(self, progress):
        assert pauses, "a step began while paused"
        return once(self, progress)

    monkeypatch.setattr(Training, "step", step)
    train(config, tmp_path, 2000, stock=True)
    again = [json.loads(line) for line in (tmp_path / "snapshots.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in again][: len(steps)] == steps
    assert later not in again
    assert len(pauses) == 1


def test_windows_cover_every_token_once_and_know_what_comes_next(config):
    for tokens in make_domains(config).values():
        stream = Windows(tokens, 32, (0,))
        for epoch in range(2):
            stream.seek(epoch, 0)
            seen = [stream.take() for _ in range(len(stream.windows))]
            assert sorted(np.concatenate([ids for ids, _ in seen])) == sorted(tokens.ids)
            assert all(len(ids) <= 32 and (ids[1:] == targets[:-1]).all() for ids, targets in seen)
            # end-of-text (0) is predicted by its document's last token and predicts nothing
            assert all((ids[-1] == 0) == (targets[-1] == -1) for ids, targets in seen)


def test_domains_get_equal_shares(config):
    sampler = Sampler(make_domains(config), 0)
    drawn = [sampler.draw(32, 100, 2) for _ in range(50)]
    assert all(abs(len(a.ids_T) - len(b.ids_T)) <= 32 for a, b in drawn)
    assert all(-32 < credit <= 0 for credit in sampler.credit.values())


def test_no_shard_is_empty_where_windows_exceed_the_share(config):
    sampler = Sampler(make_domains(config), 0)
    drawn = [sampler.draw(64, 5, 2) for _ in range(40)]
    assert all(len(batch.ids_T) > 0 for batches in drawn for batch in batches)
    assert all(-64 < credit <= 0 for credit in sampler.credit.values())


def test_a_domain_with_other_text_starts_anew(config):
    domains = make_domains(config)
    sampler = Sampler(domains, 0)
    for _ in range(5):
        sampler.draw(32, 100, 1)
    longer = Tokens(np.append(domains["long"].ids, domains["long"].ids), np.append(domains["long"].bounds, 0))
    longer.bounds[-1] = len(longer.ids)
    other = Sampler(domains | {"long": longer}, 0)
    other.restore(sampler.state())
    assert other.state()["streams"] == sampler.state()["streams"] | {"long": (0, 0)}
    other.draw(32, 100, 1)


def test_schedule():
    recipe = Recipe()
    assert recipe.rate_at(0, 0.0) == pytest.approx(recipe.rate / recipe.warmup_steps)
    assert recipe.rate_at(1000, 0.69) == recipe.rate
    assert recipe.rate_at(1000, 0.85) == pytest.approx(recipe.rate / 2)
    assert recipe.rate_at(1000, 1.0) == pytest.approx(recipe.rate * recipe.final_rate)
    assert Budget(minutes=10).progress(seconds=300, tokens=5) == 0.5
    assert [recipe.stage_at(p)[0] for p in (0.0, 0.6, 0.9)] == [256, 512, 1024]


def test_saved_weights_load_into_the_stock_model(config, flat, tmp_path):
    save_model(views(flat, parameter_shapes(config)), config, tmp_path / "model")
    loaded = OlmoeForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for name, tensor in views(flat, parameter_shapes(config)).items():
        assert torch.equal(loaded.get_parameter(name), tensor.bfloat16().float()), name
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert names == {"model.safetensors", "config.json", "generation_config.json"}


def test_evaluation_counts_every_token_once():
    for length in (1, 512, 1024, 1025, 1536, 1537, 5000):
        windows = windows_of(0, length)
        counted = np.concatenate([np.arange(first, end) for _, _, end, first in windows])
        assert (counted == np.arange(length)).all()
        assert all(first == start == 0 or first - start >= 512 for _, start, _, first in windows)
