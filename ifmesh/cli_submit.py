"""The commands that ask for something new: submit, encode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ifmesh import cli_candidates as best_of
from ifmesh import cli_flags as flags
from ifmesh import cli_options as options
from ifmesh import cli_run as run
from ifmesh import cli_targets as targets
from ifmesh import cli_wishes as wishes
from ifmesh import exits
from ifmesh.cli_targets import Output
from ifmesh.cli_wishes import Order


@click.command(short_help="Draw a prompt, vary, repaint or enlarge a picture; or many.")
@click.argument("prompt", required=False)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; without it JOB.png here.  With --batch: a folder.")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=1, help="So many pictures, with seeds SEED, SEED+1 ...")
@click.option("--candidates", type=click.IntRange(2, 100), metavar="N", help="So many seeds through Stage I, and on with those you choose.")
@click.option("--keep", "choice", metavar="N,N", help="With --candidates: on with these, unasked; or none.")
@flags.drawing
@click.option("--batch", type=click.Path(), metavar="FILE", help="A picture for each line of JSON; - is stdin.")
@click.option("--ahead", type=click.IntRange(1, 1000), default=8, show_default=True, help="With --batch: so many at once.")
@flags.writing
@options.as_json
@options.coordinator
@options.configured
def submit(
    prompt: str | None,
    out: Path | None,
    count: int,
    candidates: int | None,
    choice: str | None,
    image: str | None,
    mask: str | None,
    embeds: str | None,
    batch: str | None,
    ahead: int,
    stages_dir: Path | None,
    no_parameters: bool,
    no_wait: bool,
    as_json: bool,
    config_file: Path | None,
    **given: Any,
) -> int:
    """Draw PROMPT and write the picture.  Progress goes to stderr; with --json one line per picture to stdout.

    \b
    ifmesh submit "a large yellow star on a blue background" -o star.png --seed 7
    ifmesh submit "a lighthouse" --size 64 --steps I=50 --guidance I=9 --json
    ifmesh submit "a panda in the rain" --image panda.png --strength 0.6
    ifmesh submit "a hat" --image panda.png --mask mask.png --stages-dir stages
    ifmesh submit "a panda" --image small.jpg --upscale -o large.webp
    ifmesh submit "a panda" --style "an oil painting" --positive-mixer I=0.25,II=0.5
    ifmesh submit "an owl" -n 4 --seed 10 -o owl.png           # owl-1.png ... owl-4.png

    With --candidates that many seeds are drawn by Stage I alone, which is cheap; a contact sheet shows them, numbered, and those that you
    choose go on.  Without a terminal, --keep chooses; or `ifmesh proceed` goes on later.

    \b
    ifmesh submit "a fox" --candidates 8 -o fox.png            # shows fox-candidates.png, and asks
    ifmesh submit "a fox" --candidates 8 --keep 2,5 -o fox.png # fox-2.png and fox-5.png

    With --batch every line is an object: prompt and any other wish of the client by its name, image, mask and embeds as paths (relative
    to the file), out as the name of the picture.  The flags here are for the lines that do not say otherwise.

    \b
    {"prompt": "a fox", "seed": 7, "size": 64, "out": "fox.png"}
    {"prompt": "a wolf", "image": "fox.png", "settings": {"stage_one": {"steps": 50, "strength": 0.6}}}
    ifmesh submit --batch prompts.jsonl -o pictures --json
    """
    wished = wishes.wished(**given, stages=stages_dir is not None, way=wishes.gone_through(given["upscale"]))
    shared = Order(prompt or "", wished, image, mask, embeds)
    output = Output(stages_dir, not no_parameters, as_json)
    targets.check_folder(stages_dir, "--stages-dir")
    keep = _choice(choice, candidates, batch, count, no_wait)
    if batch is not None:
        orders = _batch(batch, shared, prompt, out, count)
    elif prompt is None and embeds is None:
        raise click.MissingParameter(param_type="argument", param_hint="'PROMPT'", message="say what to draw, or --batch FILE")
    elif given["upscale"] and image is None:
        raise click.UsageError(f"{wishes.UPSCALE[given['upscale']]}: what? give a picture, too: --image PATH|URL")
    else:
        targets.check_file(out)
        shared = replace(shared, target=out)
        if candidates is not None:
            orders = best_of.orders(shared, candidates)
        else:
            with wishes.flagged():
                orders = shared.times(count)
                for order in orders:
                    order.made()
    if no_wait:
        for order in orders:
            run.check_detached(order.wishes.get("tied"), f"{'stdin' if batch == '-' else batch}, line {order.line}" if order.line else "")
    with options.door(config_file) as client:
        if no_wait:
            return run.hand_in(client, orders, output, patient=batch is not None)
        if candidates is not None:
            return best_of.best(client, shared, orders, keep, output)
        if batch is not None:
            return run.fly(client, orders, ahead, output)
        return run.each(client, orders, output)


def _choice(text: str | None, candidates: int | None, batch: str | None, count: int, no_wait: bool) -> tuple[int, ...] | None:
    """Those of --keep; None: nothing is said yet.  UsageError: not among the candidates, or with flags that do not go together."""
    if candidates is None:
        if text is not None:
            raise click.UsageError(f"--keep {text}: chooses among candidates: give --candidates N, too (or did you mean --keep-for S?)")
        return None
    for flag, said in (("--batch", batch is not None), ("--count", count > 1), ("--keep with --no-wait", no_wait and text is not None)):
        if said:
            raise click.UsageError(f"{flag}: not with --candidates: leave one of them out")
    try:
        return None if text is None else best_of.chosen(text, range(1, candidates + 1))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--keep") from None


def _batch(batch: str, shared: Order, prompt: str | None, out: Path | None, count: int) -> list[Order]:
    from ifmesh import cli_batch

    if prompt is not None:
        raise click.UsageError(f"PROMPT: {prompt!r}: every line of --batch has its own: leave it out")
    if out is not None and out.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") and not out.is_dir():
        raise click.BadParameter(f"{out}: with --batch the name of a folder", param_hint=targets.OUT)
    targets.check_folder(out, targets.OUT)
    orders = cli_batch.read(batch, shared, out or Path())
    return [one for order in orders for one in order.times(count)]


@click.command(short_help="Encode a prompt, to draw it later.")
@click.argument("prompt")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File to write, as in fox.safetensors.")
@click.option("--negative", default="", metavar="TEXT", help="What should not be there.")
@options.as_json
@options.coordinator
@options.configured
def encode(prompt: str, out: Path, negative: str, as_json: bool, config_file: Path | None) -> int:
    """Write what the encoder makes of PROMPT, for `ifmesh submit --embeds`.

    \b
    ifmesh encode "a red panda reading a map" -o panda.safetensors
    ifmesh submit --embeds panda.safetensors --seed 7
    """
    from ifmesh import screen
    from ifmesh import wishes as wished

    targets.check_file(out, (".safetensors",))
    with wishes.flagged():
        request = wished.encoding(prompt, negative)
    with options.door(config_file) as client:
        run.warn_missing(client, [request])
        embeds = client.encode(prompt, negative)
    targets.save(embeds.save, out)
    if as_json:
        tensor = embeds.tensor
        screen.document({"path": str(out), "shape": list(tensor.shape), "dtype": tensor.dtype, "notes": list(embeds.notes)})
    else:
        screen.tell(str(out))
    for note in embeds.notes:
        screen.say(f"{out}: {note}", "yellow")
    return exits.OK
