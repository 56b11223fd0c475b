"""Runs of several processes are one checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.checkpoints.runs import names, run_ranks


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by fork")
def test_a_run_of_several_processes_goes_on_exactly(tmp_path: Path) -> None:
    """With DistributedDataParallel each process gets its own random numbers back; the first one alone writes."""
    run_ranks(
        """
        from torch.utils.data import DistributedSampler

        def train(rank, folder, stop=None):
            model, optimizer = build(False)
            data = torch.arange(80.0).reshape(16, 5)
            loader = ResumableLoader(data, 2, sampler=DistributedSampler(data, seed=3))
            manager = CheckpointManager(folder + ("/runs" if stop else "/none"), monitor="loss")
            torch.manual_seed(rank)
            random.seed(rank)
            if stop == "resume":
                torch.manual_seed(99)
                manager = CheckpointManager(folder + "/runs", monitor="loss")
            done = 0
            for epoch in range(manager.resume(model=model, optimizer=optimizer, sampler=loader), 2):
                loader.sampler.set_epoch(epoch)
                for batch in loader:
                    (model(batch).square().mean() + random.random() * model.module[3].bias.sum()).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    done += 1
                    if done == stop:
                        manager.save(epoch, model=model, optimizer=optimizer, sampler=loader)
                        return
            return whole(model)

        def first(rank, folder):
            torch.save(train(rank, folder), f"{folder}/expected{rank}")
            train(rank, folder, 6)

        def second(rank, folder):
            assert torch.equal(train(rank, folder, "resume"), torch.load(f"{folder}/expected{rank}"))

        start((2, 2), first, second)
        """,
        tmp_path,
    )
    assert names(tmp_path / "runs") == ["1.safetensors"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by fork")
def test_processes_agree_on_what_is_best(tmp_path: Path) -> None:
    """Where each process measured another loss, all name the same files, by what the first one measured."""
    run_ranks(
        """
        def save(rank, folder):
            manager = CheckpointManager(folder + "/runs", monitor="loss")
            for epoch, loss in enumerate([0.2, 0.3]):
                path = manager.save(epoch, model=build(False)[0], metrics={"loss": loss / (1 + rank * epoch)})
            dist.barrier()
            assert path.exists() and path.name == "1-0.3000.safetensors", path
            assert manager.best_path.name == "0-0.2000.safetensors", manager.best_path

        start((2,), save)
        """,
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by fork")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_model_spread_over_processes(tmp_path: Path, suffix: str) -> None:
    """What fully_shard spread over two processes is one whole file, which goes on exactly on one, two and three."""
    run_ranks(
        f"""
        PATH = "/run{suffix}"

        def train(model, optimizer, count):
            model.eval()  # with dropout off, all processes see the same
            for number in range(count):
                batch = torch.linspace(-1, 1, 20).reshape(4, 5) * (number + 1)
                model(batch).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()

        def first(rank, folder):
            model, optimizer = build(True)
            train(model, optimizer, 2)
            save_checkpoint(folder + PATH, model=model, optimizer=optimizer, epoch=2)
            manager = CheckpointManager(folder + "/runs", background=True)
            manager.save(2, model=model, optimizer=optimizer)
            manager.wait()
            saved = whole(model)
            train(model, optimizer, 2)
            if rank == 0:
                torch.save((saved, whole(model)), folder + "/expected")
            else:
                whole(model)

        def again(rank, folder):
            saved, expected = torch.load(folder + "/expected")
            for resume in (
                lambda **all: load_checkpoint(folder + PATH, **all),
                lambda **all: CheckpointManager(folder + "/runs").resume(**all),
            ):
                torch.manual_seed(5)
                model, optimizer = build(dist.get_world_size() > 1)
                for parameter in model.parameters():
                    nn.init.zeros_(parameter.to_local() if hasattr(parameter, "to_local") else parameter)
                resume(model=model, optimizer=optimizer)
                assert torch.equal(whole(model), saved)
                train(model, optimizer, 2)
                assert torch.allclose(whole(model), expected, rtol=1e-6, atol=0)
                if dist.get_world_size() == 2:
                    assert torch.equal(whole(model), expected)

        start((2, 1, 2, 3), first, again, again, again)
        """,
        tmp_path,
    )
    assert names(tmp_path / "runs") == ["2.safetensors"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by fork")
def test_a_sharded_model_is_saved_after_a_validation(tmp_path: Path) -> None:
    """A forward without a backward leaves its parameters whole for a while, which are not those of the optimizer."""
    run_ranks(
        """
        def run(rank, folder):
            model = nn.Linear(5, 3)
            fully_shard(model)
            optimizer = torch.optim.AdamW(model.parameters())
            model(torch.ones(2, 5)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model(torch.ones(2, 5))
            save_checkpoint(folder + "/run.pt", model=model, optimizer=optimizer)
            dist.barrier()
            load_checkpoint(folder + "/run.pt", model=model, optimizer=optimizer)

        start([2], run)
        """,
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by fork")
def test_all_hear_of_what_keeps_the_first_from_saving(tmp_path: Path) -> None:
    """No process waits for ever for one that has raised: each gets the error, and the next save works."""
    run_ranks(
        """
        def run(rank, folder):
            model, _ = build(False)
            manager = CheckpointManager(folder + "/runs", monitor="val_loss")
            for wrong in ({"metrics": {}}, {"metrics": {"val_loss": "low" if rank == 0 else 1.0}}):
                try:
                    manager.save(0, model=model, **wrong)
                except ftkit.FtkitError as error:
                    Path(folder, f"{rank}{len(wrong['metrics'])}").write_text(str(error))
            path = manager.save(0, model=model, metrics={"val_loss": rank + 0.5})
            assert path == manager.best_path == manager.last_path == Path(folder, "runs", "0-0.5000.safetensors"), path

        import ftkit
        start([2], run)
        """,
        tmp_path,
    )
    assert "val_loss" in (tmp_path / "00").read_text()
    assert (tmp_path / "00").read_text() == (tmp_path / "10").read_text()
    assert (tmp_path / "01").read_text() == (tmp_path / "11").read_text()
