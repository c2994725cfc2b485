"""`dsmr export` and `dsmr push`: what others get, and what they can do with it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsmr.model import load_checkpoint, save_checkpoint
from dsmr.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_info
from tests.dsmr.cli.commands import ENVIRONMENT, fails, shell, succeeds
from tests.hub import TOKEN, Hub, serving

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def dsmr(hub: Hub, tmp_path: Path) -> Run:
    """Runs a command in a process whose hub is the stand-in; it has to end as `exits` says."""

    def run(*arguments: object, exits: int = 0, **changed: str | None) -> subprocess.CompletedProcess[str]:
        variables: Mapping[str, str | None] = {**ENVIRONMENT, **hub.environment(tmp_path / "hub"), **changed}
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "dsmr", *map(str, arguments)],
            cwd=tmp_path / "elsewhere",
            env={name: value for name, value in variables.items() if value is not None},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == exits, done.stdout + done.stderr
        return done

    return run


class TestExport:
    def test_writes_rounded_weights_and_a_card_with_measurements_of_them(
        self, checkpoint: Path, store: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "theirs"
        facts = ["--license", "apache-2.0", "--trained-on", "Six pieces of dice."]
        arguments = ["export", checkpoint, "--out", out, "--weights", "bf16", *facts]
        said, _ = shell(*arguments)
        assert sorted(os.listdir(out)) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]
        rounded, exact = load_file(out / WEIGHTS_FILE), load_file(checkpoint / WEIGHTS_FILE)
        assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in exact.items())
        assert f"{(out / WEIGHTS_FILE).stat().st_size:,} bytes" in said
        assert read_info(out).training == read_info(checkpoint).training
        card = (out / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlibrary_name: dsmr\nlicense: apache-2.0\ntags:\n- dsmr\n")
        for text in ("# theirs", "stored in bfloat16", "Six pieces of dice.", read_info(out).digest, "validation"):
            assert text in card
        assert "| whole pieces |" not in card

        evaluation = tmp_path / "evaluation.json"
        evaluation.write_text(succeeds("evaluate", out, "--data", store, "--json"))
        assert "exists already; --force replaces it" in fails(*arguments, "--evaluation", evaluation)
        succeeds(*arguments, "--evaluation", evaluation, "--force")
        found = json.loads(evaluation.read_text())
        card = (out / "README.md").read_text(encoding="utf-8")
        assert f"| whole pieces | {found['whole']['ppl']:.2f} | too few pieces |" in card
        assert f"| a bigram model | {found['bigram']['ppl']:.2f} |" in card
        assert f"{found['whole']['tokens']:,} tokens, of the token store" in card

    def test_rounding_of_the_weights_is_all_that_changes_the_numbers(
        self, checkpoint: Path, store: Path, tmp_path: Path
    ) -> None:
        model, _ = load_checkpoint(checkpoint)
        save_checkpoint(tmp_path / "by hand", model.bfloat16().float())
        succeeds("export", checkpoint, "--out", tmp_path / "bf16", "--weights", "bf16")
        exact, by_hand, exported = (
            json.loads(succeeds("evaluate", each, "--data", store, "--json"))["whole"]
            for each in (checkpoint, tmp_path / "by hand", tmp_path / "bf16")
        )
        assert exported == by_hand
        assert exported != exact
        played = [
            succeeds("generate", tmp_path / each, "--tokens", 60, "--out", tmp_path / f"{each}.mid")
            and (tmp_path / f"{each}.mid").read_bytes()
            for each in ("by hand", "bf16")
        ]
        assert played[0] == played[1]

    def test_an_evaluation_of_the_weights_before_they_were_rounded_will_do_and_others_not(
        self, trained: tuple[Path, str], checkpoint: Path, store: Path, tmp_path: Path
    ) -> None:
        other = trained[0] / "checkpoints" / "step-0000002"
        both = tmp_path / "both.json"
        both.write_text(succeeds("evaluate", checkpoint, other, "--data", store, "--json"))
        succeeds("export", other, "--out", tmp_path / "a", "--weights", "bf16", "--evaluation", both)
        assert "tokens, before the weights were rounded" in (tmp_path / "a" / "README.md").read_text()
        one = tmp_path / "one.json"
        one.write_text(succeeds("evaluate", checkpoint, "--data", store, "--json"))
        error = fails("export", other, "--out", tmp_path / "b", "--evaluation", one)
        assert f"one.json: expected an evaluation of the weights of SHA-256 {read_info(other).digest[:12]}" in error
        one.write_text("[]")
        assert "expected what `dsmr evaluate --json` prints" in fails(
            "export", other, "--out", tmp_path / "b", "--evaluation", one
        )
        assert "No such file" in fails("export", other, "--out", tmp_path / "b", "--evaluation", tmp_path / "none")
        assert not (tmp_path / "b").exists()

    def test_its_command_makes_the_model_again_bit_for_bit(self, checkpoint: Path, store: Path, tmp_path: Path) -> None:
        succeeds("export", checkpoint, "--out", tmp_path / "theirs")
        card = (tmp_path / "theirs" / "README.md").read_text()
        command = card.partition("## How it was made\n\n```sh\n")[2].partition("\n```")[0].replace("\\\n", "")
        program, *arguments = shlex.split(command)
        assert program == "dsmr"
        given = {"STORE": store, "RUN": tmp_path / "again"}
        same_threads = {**ENVIRONMENT, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on how many
        shell(*(given.get(each, each) for each in arguments), environment=same_threads)
        assert read_info(tmp_path / "again" / "last").digest == read_info(checkpoint).digest
        assert "makes the same weights again" in card

    def test_a_model_that_began_with_others_weights_says_so(
        self, checkpoint: Path, store: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        succeeds("train", "--data", store, "--out", run, "--init-from", checkpoint, "--steps", 1, "--validations", 1)
        succeeds("export", run / "last", "--out", tmp_path / "theirs")
        card = (tmp_path / "theirs" / "README.md").read_text()
        assert "--init-from CHECKPOINT --steps 1" in card.replace(" \\\n   ", "")
        assert "--width" not in card
        assert f"CHECKPOINT is that of the weights of SHA-256 `{read_info(checkpoint).digest}`" in card

    def test_files_of_somebody_else_stay(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("mine")
        error = fails("export", checkpoint, "--out", tmp_path, "--force")
        assert "expected an empty folder or that of a checkpoint, got one with README.md" in error
        assert (tmp_path / "README.md").read_text() == "mine"

    def test_name_and_json(self, checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "theirs"
        found = json.loads(succeeds("export", checkpoint, "--out", out, "--name", "the [red] one", "--json"))
        assert found["weights"] == read_info(checkpoint).digest
        assert found["bytes"] == (out / WEIGHTS_FILE).stat().st_size
        card = (out / "README.md").read_text()
        assert "# the [red] one\n" in card
        assert "dsmr generate 'the [red] one' --seconds 60" in card
        assert "## Licence\n\nNot stated." in card

    def test_any_name_can_be_exported_to(self, checkpoint: Path, tmp_path: Path) -> None:
        odd = "中é[red] $x^{_ \x1b[31m\n" + os.fsdecode(b"\xff")
        succeeds("export", checkpoint, "--out", tmp_path / odd, "--trained-on", odd)
        card = (tmp_path / odd / "README.md").read_text(encoding="utf-8")
        assert "# 中é[red] $x^{_ \\x1b[31m\\x0a\\xff\n" in card


class TestPush:
    def test_what_is_pushed_comes_back_bit_for_bit(self, dsmr: Run, hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
        said = dsmr("push", checkpoint, "owner/name", "--license", "cc-by-4.0")
        assert said.stdout == f"{hub.url}/owner/name: dsmr generate owner/name --out new.mid\n"
        there = hub.repositories["owner/name"]
        assert sorted(there.files) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]  # and no training.safetensors
        assert not there.private
        assert b"\nlicense: cc-by-4.0\n" in there.files["README.md"]
        assert b"dsmr generate owner/name --seconds 60" in there.files["README.md"]
        program = (
            "from dsmr.model import load_checkpoint; from safetensors.torch import save_file;"
            "model, info = load_checkpoint('owner/name');"
            f"save_file(model.state_dict(), {str(tmp_path / 'back.safetensors')!r}); print(info.digest)"
        )
        environment = {**ENVIRONMENT, **hub.environment(tmp_path / "hub", token=None)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == read_info(checkpoint).digest
        back, sent = load_file(tmp_path / "back.safetensors"), load_checkpoint(checkpoint)[0].state_dict()
        assert back.keys() == sent.keys()
        assert all(torch.equal(back[name], weight) for name, weight in sent.items())
        made = dsmr("generate", "owner/name", "--tokens", 20, "--out", tmp_path / "new.mid")
        assert "model: owner/name from the Hugging Face Hub" in made.stderr

    def test_replaces_what_is_there_and_nothing_else(self, dsmr: Run, hub: Hub, trained: tuple[Path, str]) -> None:
        first, last = trained[0] / "checkpoints" / "step-0000002", trained[0] / "last"
        dsmr("push", first, "owner/name", "--private")
        there = hub.repositories["owner/name"]
        assert there.private
        there.files["NOTES.md"] = b"mine"
        before = there.files[WEIGHTS_FILE]
        found = json.loads(dsmr("push", last, "owner/name", "--json").stdout)
        assert found == {"repository": "owner/name", "url": f"{hub.url}/owner/name"}
        assert there.private
        assert there.files["NOTES.md"] == b"mine"
        assert there.files[WEIGHTS_FILE] != before

    def test_a_card_beside_the_weights_is_pushed_as_it_is(
        self, dsmr: Run, hub: Hub, checkpoint: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "theirs"
        succeeds("export", checkpoint, "--out", out, "--weights", "bf16")
        card = f"{(out / 'README.md').read_text()}\nMy own words.\n"
        (out / "README.md").write_text(card)
        (out / "secret.txt").write_text("mine")
        error = fails("push", out, "owner/name", "--license", "mit")
        assert f"{out / 'README.md'} is the card; give them to dsmr export" in error
        dsmr("push", out, "owner/name")
        assert hub.repositories["owner/name"].files == {
            name: (out / name).read_bytes() for name in ("README.md", CONFIG_FILE, WEIGHTS_FILE)
        }

    @pytest.mark.parametrize(
        ("changed", "refused", "message"),
        [
            ({"HF_TOKEN": None}, {}, "expected a token for the Hugging Face Hub, got none: run `hf auth login`"),
            ({"HF_TOKEN": "hf_of_another"}, {}, r"refuses owner/name (401: "),
            ({}, {"repos/create": 403}, "refuses owner/name (403: You may not.): take an owner and a token that may"),
            ({}, {"preupload": 403}, "refuses owner/name (403: You may not.): take an owner and a token that may"),
            ({}, {"objects/": 403}, "refuses owner/name (403: You may not.): take an owner and a token that may"),
            ({}, {"commit": 403}, "refuses owner/name (403: You may not.): take an owner and a token that may"),
            ({}, {"validate-yaml": 400}, "does not take owner/name: Invalid metadata in README.md"),
            ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {}, "cannot be reached ("),
            ({"HF_HUB_OFFLINE": "1"}, {}, "is not asked while HF_HUB_OFFLINE is set: unset it"),
        ],
        ids=["no-token", "wrong-token", "create", "preupload", "upload", "commit", "card", "no-network", "offline"],
    )
    def test_what_goes_wrong_is_one_line_that_says_what_to_do(
        self,
        dsmr: Run,
        hub: Hub,
        checkpoint: Path,
        changed: dict[str, str | None],
        refused: dict[str, int],
        message: str,
    ) -> None:
        hub.refuses.update(refused)
        done = dsmr("push", checkpoint, "owner/name", exits=1, **changed)
        assert done.stdout == ""
        progress = r"[^\n]*model\.safetensors:[^\n]*\n|\s+"
        line = re.sub(rf"^({progress})*", "", done.stderr)
        assert line.count("\n") == 1
        assert line.startswith("dsmr: ")
        assert message in line
        assert TOKEN not in line
        assert not any(there.files for there in hub.repositories.values())

    @pytest.mark.parametrize("name", ["a/b/c", "-/-", "own er/name"])
    def test_names_that_no_repository_can_have(self, dsmr: Run, checkpoint: Path, name: str) -> None:
        line = dsmr("push", checkpoint, "--", name, exits=1).stderr
        assert f"dsmr: expected a repository owner/name, got {name!r}" in line
        assert len(line.splitlines()) == 1

    def test_nothing_is_uploaded_that_is_damaged(self, dsmr: Run, hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
        succeeds("export", checkpoint, "--out", tmp_path / "theirs")
        file = tmp_path / "theirs" / WEIGHTS_FILE
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(content)
        assert "the file is damaged" in dsmr("push", tmp_path / "theirs", "owner/name", exits=2).stderr
        assert hub.asked == []

    def test_reading_from_a_hub_that_cannot_be_reached_is_one_line(self, dsmr: Run, tmp_path: Path) -> None:
        arguments = ["generate", "owner/name", "--out", tmp_path / "new.mid"]
        done = dsmr(*arguments, exits=2, HF_ENDPOINT="http://127.0.0.1:9")
        assert done.stderr.startswith("dsmr: owner/name: no such folder here, and no repository")
        assert len(done.stderr.splitlines()) == 1
