"""Exchanges 5% of the captions of a data set, and counts how many of them have the highest losses.

Usage: swapped_captions.py swap ROWS.jsonl SWAPPED.jsonl
       swapped_captions.py count SWAPPED.jsonl LOSSES.jsonl

LOSSES.jsonl is what `vlm eval --per-row` wrote about SWAPPED.jsonl. Rows that ask for a number are
not captions and stay as they are. Captions are exchanged between rows with the same question.
"""

import json
import random
import sys

SWAPPED, WORST = 0.05, 0.06


def is_caption(row: dict) -> bool:
    question = row["conversations"][0]["content"]
    return "many" not in question and "多少" not in question


def swap(source: str, target: str) -> None:
    rows = read(source)
    captions = [row for row in rows if is_caption(row)]
    num_swapped = round(SWAPPED * len(captions)) // 2 * 2
    generator = random.Random(7)
    generator.shuffle(captions)
    done = 0
    while done < num_swapped:
        turns = captions.pop()["conversations"]
        fits = lambda other: other[0] == turns[0] and other[1] != turns[1]
        partner = next((k for k, row in enumerate(captions) if fits(row["conversations"])), None)
        if partner is None:
            continue
        others = captions.pop(partner)["conversations"]
        for one, other in ((turns, others), (others, turns)):
            one[1] = {**one[1], "right": one[1]["content"]}
        turns[1]["content"], others[1]["content"] = others[1]["content"], turns[1]["content"]
        done += 2
    with open(target, "w") as file:
        for row in rows:
            # The right caption is a key that no reader uses.
            right = row["conversations"][1].pop("right", None)
            row = row if right is None else {**row, "right_caption": right}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{done} of {sum(map(is_caption, rows))} captions were exchanged")


def count(rows_path: str, losses_path: str) -> None:
    rows = read(rows_path)
    lines = [line for line in read(losses_path) if is_caption(rows[line["row"]])]
    lines.sort(key=lambda line: line["loss"], reverse=True)
    worst = lines[: round(WORST * len(lines))]
    found = sum("right_caption" in rows[line["row"]] for line in worst)
    total = sum("right_caption" in row for row in rows)
    print(f"{found} of {total} exchanged captions are among the {len(worst)} with the highest loss")


def read(path: str) -> list[dict]:
    with open(path) as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    command, *paths = sys.argv[1:] or ["help"]
    if command not in ("swap", "count") or len(paths) != 2:
        raise SystemExit(__doc__)
    {"swap": swap, "count": count}[command](*paths)
