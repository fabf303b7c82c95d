"""`nablad train`: a training loop on the server from a file."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from nablad.calls import DEFAULT_URL
from nablad.client import Client
from nablad.command_line.common import Waiting
from nablad.command_line.gradient import flat
from nablad.command_line.tensors import check_kind, write_tensors
from nablad.command_line.train_file import TrainFile, read_train_file
from nablad.errors import Diverged
from nablad.training.messages import Report
from nablad.training.progress import drawable
from nablad.training.run import Run


def add_command(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "train",
        help="train on the server, as a file describes",
        description="Host the models of a .toml or .json file, train them on the server, save what came out. "
        "Ctrl-C stops the run and saves it.",
        usage="nablad train FILE [--resume [NAME]] [--url URL]",
        epilog="example: nablad train burgers.toml; the file is described in docs/training.md",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help=".toml or .json")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="NAME",
        help="go on from the last save of the run, by default of the name in the file",
    )
    parser.add_argument("--url", help="where the server listens, in place of the file's and of NABLAD_URL")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Host, train, save; 1 where the loop diverged, 130 where it was stopped by Ctrl-C."""
    path, resume = arguments.file, arguments.resume
    if path is None and isinstance(resume, str):  # `--resume FILE`, which names no run
        path, resume = resume, True
    if path is None:
        raise ValueError("which file? nablad train FILE")
    file = read_train_file(path)
    _check_outputs(file)
    members = {**file.members, **_resumed(file, resume)}
    with Client(_url(file, arguments.url)) as client:
        with Waiting("waiting for the server"):
            file.host(client, missing_only=bool(members.get("resume")))
            started = client.train(**members, progress=drawable())
        print(f"run {started.name}", flush=True)
        status = _follow(started, named=started.name == file.members.get("name"))
        _save(file, started)
    return status


def _url(file: TrainFile, given: str | None) -> str:
    inside = file.files.server.url if file.files.server else DEFAULT_URL
    return given or os.environ.get("NABLAD_URL") or inside


def _resumed(file: TrainFile, resume: str | bool | None) -> dict[str, Any]:
    if resume is None:
        return {}
    name = file.members.get("name") if resume is True else resume
    if name is None:
        raise ValueError(f"{file.path} gives the run no name: say which to go on with, --resume NAME")
    return {"resume": True, "name": name}


def _follow(started: Run, *, named: bool) -> int:
    try:
        for report in started:
            if not drawable():
                print(line(report), flush=True)
    except KeyboardInterrupt:
        print(_left(started, "--resume" if named else f"--resume {started.name}"), file=sys.stderr)
        return 130
    except Diverged as error:
        print(f"nablad: {error}", file=sys.stderr)
        return 1
    assert started.ended is not None
    print(f"step {started.ended.step}: {started.ended.reason}")
    return 0


def _left(run: Run, resume: str) -> str:
    if run.ended is None:
        return f"left; run {run.name} goes on without you"
    stopped = f"stopped at step {run.ended.step}"
    if not run.ended.step:
        return f"{stopped}, before the first was done; begin it again"
    if run.ended.checkpoint is None:
        return f"{stopped}; it cannot be resumed, since the server keeps no saves"
    return f"{stopped}; go on with {resume}"


def line(report: Report) -> str:
    """A report on one line."""
    said = [f"step {report.step}", f"loss {report.value:.6g}"]
    said += [f"{name} {value:.4g}" for name, value in report.terms.items()]
    if report.learning_rate is not None:
        said.append(f"learning rate {report.learning_rate:.4g}")
    return "  ".join([*said, f"{report.steps_per_second:.0f} steps/s", f"{report.seconds:.1f} s"])


def _check_outputs(file: TrainFile) -> None:
    """Before anything is computed: what is to be saved can be."""
    if file.files.out:
        check_kind(file.files.out)
    if file.files.curve:
        try:
            import matplotlib  # noqa: F401 - whether it is there is the question
        except ImportError:
            detail = "drawing a curve needs matplotlib; leave `curve` out, or type:\n  pip install matplotlib"
            raise ValueError(f"{file.path}: {detail}") from None
    for name in (file.files.out, file.files.history, file.files.curve):
        if name and not file.place(name).parent.is_dir():
            raise ValueError(f"{file.path}: there is no folder '{file.place(name).parent}' to save in")


def _save(file: TrainFile, ended: Run) -> None:
    files = file.files
    if files.out:
        found = ended.params()
        tensors = {**flat(found.params), **flat(found.state), **found.trained}
        write_tensors(str(file.place(files.out)), tensors)
    if files.history:
        ended.history.write_csv(file.place(files.history))
    if files.curve:
        ended.history.plot().figure.savefig(file.place(files.curve))
    saved = [str(file.place(name)) for name in (files.out, files.history, files.curve) if name]
    if saved:
        print(f"saved {', '.join(saved)}")
