"""Numbers of the transformers library's logits processors, for crates/vlm-model/tests/golden/sampling.rs.

    python make.py > cases.json     (torch 2.11.0, transformers 4.57)

Each case: settings, the ids seen so far, logits, and the probabilities of the next token after
RepetitionPenalty, Temperature, TopK and TopP in the order in which `generate` applies them.
"""
import json

import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

SETTINGS = [
    dict(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0),
    dict(temperature=0.7, top_k=0, top_p=1.0, repetition_penalty=1.0),
    dict(temperature=1.0, top_k=5, top_p=1.0, repetition_penalty=1.0),
    dict(temperature=1.0, top_k=0, top_p=0.8, repetition_penalty=1.0),
    dict(temperature=1.0, top_k=0, top_p=0.01, repetition_penalty=1.0),
    dict(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.3),
    dict(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=0.8),
    dict(temperature=0.65, top_k=12, top_p=0.85, repetition_penalty=1.1),
    dict(temperature=1.8, top_k=40, top_p=0.95, repetition_penalty=1.05),
]

torch.manual_seed(20250401)
cases = []
for settings in SETTINGS:
    logits = torch.randn(1, 48) * 1.5
    if settings["top_p"] == 1.0:
        # Ties: top-k keeps all that equal the k-th. (Which of them top-p keeps is up to the sort.)
        logits[0, 38:] = logits[0, :38].topk(3).values[-1]
    seen = torch.randint(48, (1, 9))
    scores = logits.clone()
    if settings["repetition_penalty"] != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"])(seen, scores)
    scores = TemperatureLogitsWarper(settings["temperature"])(seen, scores)
    if settings["top_k"] > 0:
        scores = TopKLogitsWarper(settings["top_k"])(seen, scores)
    if settings["top_p"] < 1.0:
        scores = TopPLogitsWarper(settings["top_p"])(seen, scores)
    cases.append(
        dict(
            settings,
            seen=seen[0].tolist(),
            logits=logits[0].tolist(),
            probabilities=scores.softmax(-1)[0].tolist(),
        )
    )
print("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]")
