"""A run is repeatable, survives interruptions, and chooses its best epoch without the test part."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import RICH, assert_same_run, same, without_time

from dqnet import static_bit_flops
from dqnet.data import ImageArray
from dqnet.errors import UserError
from dqnet.training import checkpoint, learner, run_state
from dqnet.training import train as loop
from dqnet.training.objective import Objective

EPOCH_KEYS = {
    "epoch",
    "train_loss",
    "val_top1",
    "val_bit_flops",
    "mean_width",
    "lr",
    "seconds",
}
SUMMARY_KEYS = {
    "top1",
    "top5",
    "loss",
    "bit_flops",
    "bit_flops_std",
    "target_bit_flops",
    "mean_width",
    "params",
    "epochs",
    "seconds",
    "seed",
}


@pytest.fixture(scope="module")
def uninterrupted(run):
    finished = {}

    def get(name):
        if name not in finished:
            finished[name] = run(*RICH[name])
        return finished[name]

    return get


def test_files_hold_what_the_contract_promises(uninterrupted):
    result = uninterrupted("dorefa")
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"metrics.jsonl", "last.pt", "best.pt", "summary.json", "plan.json"}
    assert result.summary.keys() >= SUMMARY_KEYS
    assert [m["epoch"] for m in result.metrics] == [0, 1, 2]
    assert all(m.keys() >= EPOCH_KEYS for m in result.metrics)


def test_same_seed_same_run(run):
    assert_same_run(run("seed=3"), run("seed=3"))


def test_other_seed_other_run(run):
    a, b = run("seed=3"), run("seed=4")
    assert a.metrics[0]["train_loss"] != b.metrics[0]["train_loss"]
    assert not same(a.checkpoint()["model"], b.checkpoint()["model"])


def test_random_numbers_drawn_before_do_not_matter(run):
    a = run("seed=3")
    torch.rand(17)
    assert_same_run(a, run("seed=3"))


def interrupt_after_training(monkeypatch):
    """In the second epoch, its updates made but not saved."""
    train_epoch = loop.train_epoch

    def interrupted(*args):
        train_epoch(*args)
        if args[0].done == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_epoch", interrupted)


def interrupt_between_checkpoints(monkeypatch):
    """The second epoch's metrics and best.pt written, its last.pt not."""
    save = run_state.save_checkpoint

    def interrupted(path, content, *args):
        if path.name == "last.pt" and content["epoch"] == 2:
            raise KeyboardInterrupt
        save(path, content, *args)

    monkeypatch.setattr(run_state, "save_checkpoint", interrupted)


def interrupt_while_saving(monkeypatch):
    """The third epoch's last.pt written in part."""
    save = checkpoint.write_atomically

    def interrupted(path, write, previous):
        def write_in_part(temporary):
            write(temporary)
            temporary.write_bytes(temporary.read_bytes()[:1000])
            raise KeyboardInterrupt

        third = "last" in path.name and len((path.parent / "metrics.jsonl").open().readlines()) == 3
        save(path, write_in_part if third else write, previous)

    monkeypatch.setattr(checkpoint, "write_atomically", interrupted)


def interrupt_before_summary(monkeypatch):
    def interrupted(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_json", interrupted)


@pytest.mark.parametrize("name", RICH)
@pytest.mark.parametrize(
    "interrupt",
    [
        interrupt_after_training,
        interrupt_between_checkpoints,
        interrupt_while_saving,
        interrupt_before_summary,
    ],
)
def test_interrupted_run_ends_as_if_it_had_not_been(run, uninterrupted, tmp_path, name, interrupt):
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch)
        with pytest.raises(KeyboardInterrupt):
            run(*RICH[name], folder=tmp_path / "run")
    assert not (tmp_path / "run/summary.json").exists()
    torch.rand(5)
    continued = run(*RICH[name], folder=tmp_path / "run")
    assert "continuing" in continued.text
    assert_same_run(continued, uninterrupted(name))
    assert not list((tmp_path / "run").glob(".*"))


def interrupt_before_checkpoints(monkeypatch):
    """The second epoch's metrics written, neither of its checkpoints."""
    save = run_state.save_checkpoint

    def interrupted(path, content, *args):
        if content["epoch"] == 2:
            raise KeyboardInterrupt
        save(path, content, *args)

    monkeypatch.setattr(run_state, "save_checkpoint", interrupted)


def test_line_cut_off_in_metrics_is_written_anew(run, uninterrupted, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_before_checkpoints(patch)
        with pytest.raises(KeyboardInterrupt):
            run(*RICH["dorefa"], folder=tmp_path)
    file = tmp_path / "metrics.jsonl"
    assert len(file.read_text().splitlines()) == 2
    file.write_text(file.read_text()[:-40])
    continued = run(*RICH["dorefa"], folder=tmp_path)
    expected = uninterrupted("dorefa").metrics
    assert [without_time(m) for m in continued.metrics] == [without_time(m) for m in expected]


def test_complete_run_returns_its_summary_and_computes_nothing(uninterrupted, run, monkeypatch):
    monkeypatch.delattr(loop, "Learner")
    done = uninterrupted("dorefa")
    before = {path: path.stat().st_mtime_ns for path in done.folder.iterdir()}
    again = run(*RICH["dorefa"], folder=done.folder)
    assert again.summary == done.summary
    assert {path: path.stat().st_mtime_ns for path in done.folder.iterdir()} == before
    assert "complete" in again.text


def test_complete_run_may_lose_its_last_checkpoint(run, monkeypatch):
    settings = "quant=none", "data.val_fraction=0.25"
    done = run(*settings)
    (done.folder / "last.pt").unlink()
    before = {path: path.stat().st_mtime_ns for path in done.folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.delattr(loop, "Learner")
        assert run(*settings, folder=done.folder).summary == done.summary
        with pytest.raises(UserError, match=r"holds a run with seed=0, not 9"):
            run(*settings, "seed=9", folder=done.folder)
    assert {path: path.stat().st_mtime_ns for path in done.folder.iterdir()} == before
    (done.folder / "best.pt").unlink()
    with pytest.raises(UserError, match=r"the summary of a complete run and none of its check"):
        run(*settings, folder=done.folder)
    names = {path.name for path in done.folder.iterdir()}
    assert names == {"metrics.jsonl", "summary.json"}


@pytest.mark.parametrize("change", ["seed=9", "optim.lr=0.123", "quant.widths=[2,4]"])
def test_folder_of_another_run_is_refused(uninterrupted, run, change):
    folder = uninterrupted("dorefa").folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match=change.partition("=")[0]) as caught:
        run(*RICH["dorefa"], change, folder=folder)
    assert str(folder) in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    ["data.workers=1", "trainer.device=auto", "trainer.checkpoint_steps=5", "logger.name=wandb"],
)
def test_circumstances_do_not_make_another_run(uninterrupted, run, change):
    done = uninterrupted("dorefa")
    assert run(*RICH["dorefa"], change, folder=done.folder).summary == done.summary


# Which epoch is the best


@pytest.fixture
def scripted(run, monkeypatch):
    """A run whose epochs have given (cost relative to the target, top-1 in percent)."""

    def start(epochs, *overrides):
        evaluate, script = loop.evaluate, iter([*epochs, (1.0, 0)])

        def scripted_evaluation(model, *args):
            real = evaluate(model, *args)
            ratio, top1 = next(script)
            correct = torch.arange(len(real.labels)) < round(top1 / 100 * len(real.labels))
            changes = {"top_classes": torch.where(correct, real.labels, real.labels - 1)[:, None]}
            if real.cost is not None:
                changes["cost"] = torch.full_like(real.cost, ratio * static_bit_flops(model, 3))
            return replace(real, **changes)

        monkeypatch.setattr(loop, "evaluate", scripted_evaluation)
        monkeypatch.setattr(
            loop,
            "train_epoch",
            lambda run, *args: run.history.append({"loss": torch.ones(())}),
        )
        epochs = f"trainer.epochs={len(epochs)}"
        return run("quant.widths=[2,3,4]", "loss.target_bits=3", epochs, *overrides)

    return start


@pytest.mark.parametrize(
    "epochs, best",
    [
        pytest.param([(1.0, 50), (1.0, 70), (1.0, 60)], 1, id="most accurate"),
        pytest.param([(1.0, 50), (1.0, 50)], 0, id="the first of equals"),
        pytest.param([(1.0, 50), (1.03, 90)], 0, id="over budget, though accurate"),
        pytest.param([(1.03, 90), (0.9, 10)], 1, id="within budget, though inaccurate"),
        pytest.param([(1.0, 40), (1.019, 50)], 1, id="two percent are tolerated"),
        pytest.param([(1.5, 90), (1.3, 10), (1.4, 99)], 1, id="none within budget: cheapest"),
    ],
)
def test_best_epoch_is_the_most_accurate_within_budget(scripted, epochs, best):
    result = scripted(epochs, "data.val_fraction=0.25")
    assert result.summary["best_epoch"] == best
    assert result.checkpoint("best.pt")["epoch"] == best + 1


def test_best_epoch_of_a_float_run_is_the_most_accurate(scripted):
    result = scripted([(9, 40), (9, 70), (9, 60)], "data.val_fraction=0.25", "quant=none")
    assert result.checkpoint("best.pt")["epoch"] == 2


def test_without_validation_part_the_best_epoch_is_the_last(scripted):
    result = scripted([(1.0, 90), (1.5, 10)], "data.val_fraction=0")
    assert result.summary["best_epoch"] == 1
    assert same(result.checkpoint("best.pt")["model"], result.checkpoint("last.pt")["model"])


@pytest.mark.parametrize("fraction", [0, 0.25])
def test_test_labels_influence_nothing_but_the_summary(run, monkeypatch, fraction):
    settings = "trainer.epochs=3", f"data.val_fraction={fraction}"
    honest = run(*settings)
    load_data = loop.load_data

    def with_shuffled_test(config):
        splits = load_data(config)
        labels = (splits.test.labels + 1) % splits.num_classes
        return replace(splits, test=ImageArray(splits.test.images, labels))

    monkeypatch.setattr(loop, "load_data", with_shuffled_test)
    shuffled = run(*settings)
    assert shuffled.summary["loss"] != honest.summary["loss"]
    assert shuffled.summary["best_epoch"] == honest.summary["best_epoch"]
    for name in ("best.pt", "last.pt"):
        assert same(shuffled.checkpoint(name)["model"], honest.checkpoint(name)["model"])


def test_summary_is_the_test_part_measured_with_best_pt(uninterrupted, measure, tmp_path):
    done = uninterrupted("dorefa")
    measured = measure(done.folder, output=str(tmp_path))
    assert measured["checkpoint"].endswith("best.pt")
    assert measured["images"] == 60
    shared = done.summary.keys() & measured.keys()
    assert shared >= {"top1", "top5", "loss", "bit_flops", "bit_flops_std", "width_counts"}
    assert {key: measured[key] for key in shared} == {key: done.summary[key] for key in shared}


# Forms of training


@pytest.mark.parametrize(
    "overrides",
    [
        "quant=none",
        "quant.widths=[3]",
        "quant=pact",
        "quant=lsq",
        "quant=lsq quant.widths=[2]",
        "loss=mean_width",
        "quant/controller=paper",
        "quant.controller.kind=separate",
        "quant.controller.tau_end=0.1",
        "trainer.ema=0.99",
        "trainer.ema=0.99 quant=lsq",
        "trainer.precision=bf16",
        "trainer.precision=bf16 quant=none",
        "loss.label_smoothing=0.1",
        "loss.mutual_information=0",
        "optim.clip_grad=0.5",
        "trainer.channels_last=true",
        "optim=adamw optim.clip_grad=1",
        "optim.schedule=step optim.decay_epochs=0.5",
        "optim.schedule=step optim.decay_epochs=0.001",
        "optim.schedule=multistep optim.milestones=[0.5]",
        "optim.schedule=constant optim.warmup_epochs=0.5",
        "optim.controller_lr_scale=0.1",
        "data.batch_size=1000",
    ],
)
def test_every_form_trains_to_finite_figures(run, overrides):
    result = run(*overrides.split())
    (metrics,) = result.metrics
    values = (*metrics.values(), *result.summary.values())
    numbers = [value for value in values if not isinstance(value, dict | str)]
    assert all(value is None or math.isfinite(value) for value in numbers)
    for state in (result.checkpoint()["model"], result.checkpoint()["ema"] or {}):
        assert all(t.isfinite().all() for t in state.values() if t.is_floating_point())
    assert "result" in result.text


def test_float_run_costs_nothing_that_is_counted_and_routes_nothing(run):
    summary = run("quant=none").summary
    assert summary["bit_flops"] is None
    assert summary["target_bit_flops"] is None
    assert summary["mean_width"] == 32
    assert summary["width_counts"] == {}
    assert summary["bit_flops_total"] == 32 * 32 * summary["macs"]
    assert summary["costs"]["bit_flops"] == summary["bit_flops_total"]
    assert 0.99 < summary["costs"]["size"] / (4 * summary["params"]) < 1  # all but biases and norms
    assert summary["costs"]["energy"] > summary["macs"] * (32 / 16) ** 1.25


def test_static_run_costs_its_target_for_every_image(run):
    summary = run("quant.widths=[3]").summary
    assert summary["bit_flops"] == summary["target_bit_flops"] == 9 * quantized_macs(summary)
    assert (summary["bit_flops_std"], summary["mean_width"]) == (0, 3)


def quantized_macs(summary):
    """All but the first convolution (9 · 16 per pixel of 8 x 8) and the classifier (64 · 10)."""
    return summary["macs"] - 9 * 16 * 64 - 64 * 10


def test_training_lowers_the_loss(run):
    result = run("quant=none", "optim.lr=0.05", "trainer.epochs=4", "optim.schedule=constant")
    losses = [m["train_loss"] for m in result.metrics]
    assert losses[-1] < 0.8 * losses[0]


def test_penalty_lowers_the_cost(run):
    settings = "quant.widths=[2,4] quant.static_width=2 loss.target_bits=2.5 optim.lr=0.05"
    epochs = "trainer.epochs=6"
    free, priced = (run(*settings.split(), epochs, f"loss.alpha={a}") for a in (0, 20))
    assert priced.summary["bit_flops"] < free.summary["bit_flops"]


def test_ema_is_what_is_measured(run, measure, tmp_path):
    result = run("trainer.ema=0.5", "optim.lr=0.05")
    content = result.checkpoint()
    assert not same(content["ema"], content["model"])
    averaged = measure(result.folder / "last.pt", output=str(tmp_path))
    torch.save({**content, "ema": None}, tmp_path / "raw.pt")
    raw = measure(tmp_path / "raw.pt", output=str(tmp_path))
    assert averaged["loss"] == result.summary["loss"] != raw["loss"]


def test_temperature_falls_geometrically_to_its_end(run, monkeypatch):
    seen = []
    set_temperature = learner.set_temperature

    def record(model, *args):
        set_temperature(model, *args)
        seen.append(model.controller.tau)

    monkeypatch.setattr(learner, "set_temperature", record)
    run("quant.controller.tau=4", "quant.controller.tau_end=0.25", "trainer.epochs=2")
    assert seen == pytest.approx([4 * (1 / 16) ** (i / 8) for i in range(8)])


def test_loss_is_told_how_much_of_the_training_is_done(run, monkeypatch):
    seen = []
    total = Objective.total

    def record(objective, terms, progress):
        seen.append(progress)
        return total(objective, terms, progress)

    monkeypatch.setattr(Objective, "total", record)
    run("trainer.epochs=2")
    assert seen == [i / 8 for i in range(8)]


def test_lr_in_metrics_is_that_of_the_epochs_last_update(run):
    result = run("trainer.epochs=2", "optim.lr=0.1", "optim.schedule=cosine", "optim.min_lr=0")
    expected = [0.05 * (1 + math.cos(math.pi * update / 8)) for update in (3, 7)]
    assert [m["lr"] for m in result.metrics] == pytest.approx(expected)


def test_gradients_are_clipped_to_the_norm(run, monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def record(parameters, limit):
        parameters = list(parameters)
        clip(parameters, limit)
        grads = [p.grad.flatten() for p in parameters if p.grad is not None]
        norms.append(torch.cat(grads).norm().item())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    run("optim.clip_grad=0.01")
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_loss_that_is_not_finite_ends_the_run_and_saves_nothing(run, tmp_path):
    with pytest.raises(UserError, match=r"the loss is not finite: .*; lower optim\.lr"):
        run("quant=none", "optim.lr=1e30", folder=tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_zero_epochs_measure_the_model_as_it_is(run):
    trained = run("quant=none")
    untouched = run(
        "quant=none", "trainer.epochs=0", f"model.checkpoint_path={trained.folder / 'best.pt'}"
    )
    assert untouched.metrics == []
    keys = ("top1", "top5", "loss")
    assert [untouched.summary[k] for k in keys] == [trained.summary[k] for k in keys]
    assert same(untouched.checkpoint()["model"], trained.checkpoint()["model"])


def test_quantizers_of_the_average_are_set_from_training_data_too(run, measure):
    averaged = run("trainer.epochs=0", "quant=lsq", "trainer.ema=0.9")
    content = averaged.checkpoint("best.pt")
    assert same(content["ema"], content["model"])
    assert all(v for k, v in content["ema"].items() if k.endswith("initialized"))
    alone = run("trainer.epochs=0", "quant=lsq")
    assert averaged.summary["loss"] == alone.summary["loss"]


@pytest.mark.parametrize(
    "override, message",
    [
        ("trainer.epochs=-1", "trainer.epochs -1 must not be negative"),
        ("trainer.checkpoint_steps=0", "trainer.checkpoint_steps 0 must be above 0, or null"),
        ("trainer.ema=1", r"trainer.ema 1.0 must be in \(0, 1\)"),
        ("trainer.checkpoint_minutes=-1", "checkpoint_minutes -1.0 must be above 0, or null"),
        ("optim.decay_epochs=0", "optim.decay_epochs 0.0 must be above 0"),
        ("seed=-1", "seed -1 must be from 0"),
        ("logger.name=tensorboard", "unknown logger 'tensorboard'"),
        ("logger=wandb logger.mode=of", "unknown logger.mode 'of'; did you mean 'offline'"),
        ("trainer.precision=fp16", "unknown trainer.precision 'fp16'; did you mean 'bf16'"),
        ("trainer.device=gpu", "trainer.device 'gpu' is unknown; valid: auto, cpu, cuda"),
        ("trainer.device=meta", "trainer.device 'meta' is not supported"),
    ],
)
def test_settings_out_of_range(run, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        run(*override.split(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_epoch_reports_the_terms_of_the_loss(run):
    """The task's loss, the penalty and the information are apart: their sum may be negative."""
    dynamic = run("trainer.epochs=1").metrics[0]
    assert dynamic["train_loss"] > 0 and dynamic["train_penalty"] >= 0
    assert 0 <= dynamic["train_mutual_information"] <= math.log(3)
    static = run("trainer.epochs=1", "quant.widths=[3]").metrics[0]
    assert static["train_loss"] > 0 and "train_penalty" not in static
