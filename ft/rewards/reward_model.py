"""A reward learnt from pairs: Bradley-Terry on the same base, a LoRA adapter and a head, through TRL's RewardTrainer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.data.rows import Row
from ft.errors import UserError
from ft.files import new_dir, write_json
from ft.models import parameters, sources
from ft.rewards import drawn, learning
from ft.score import own
from ft.score.own import RECORD
from ft.score.rewards import Reward
from ft.text.template import Template, from_record, to_record
from ft.train.sft import on_one_gpu


def train(
    base: str,
    template: Template,
    rows: Sequence[Row],
    folder: Path,
    *,
    learning_rate: float = 1e-4,
    num_train_epochs: float = 1.0,
    per_device_train_batch_size: int = 8,
    r: int = 16,
    seed: int = 0,
) -> None:
    """Write a reward model for rows of ``ft.data.preferences``: adapter, head, tokenizer and what it is made of.

    The loss is ``-log sigmoid(reward of chosen - reward of rejected)`` (Bradley and Terry 1952;
    Ouyang et al. 2022), the reward a linear function of the last token's hidden state.
    """
    learning.require_trl()
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from ft.models.load import load_tokenizer

    tokenizer = load_tokenizer(base)
    ids = drawn.encode_pairs(rows, template, tokenizer)
    data = [
        {f"{name}_ids": pair["prompt_ids"] + pair[f"{name}_ids"] for name in ("chosen", "rejected")}
        for pair in ids
    ]
    set_seed(seed)
    model = _classifier(base, tokenizer)
    chosen = parameters.portable(model, parameters.select(model, "auto"))
    config = LoraConfig(
        task_type="SEQ_CLS", r=r, lora_alpha=2 * r, target_modules=chosen, modules_to_save=["score"]
    )
    adapted = get_peft_model(model, config)
    with new_dir(folder) as place:
        settings: Any = learning.common(
            adapted, place, learning_rate, per_device_train_batch_size, None, seed
        )
        args = RewardConfig(
            **(settings | learning.saving(None) | {"disable_tqdm": False}),
            num_train_epochs=num_train_epochs,
            max_length=None,
        )
        trainer = RewardTrainer(
            model=adapted,
            args=on_one_gpu(args),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
        )
        trainer.train()
        if bad := [
            n
            for n, p in adapted.named_parameters()
            if p.requires_grad and not torch.isfinite(p).all()
        ]:
            raise UserError(f"{bad[0]} is not finite after training; try a lower --learning-rate")
        adapted.save_pretrained(str(place))
        tokenizer.save_pretrained(str(place))
        (place / "README.md").unlink(missing_ok=True)
        record = {"base": base, "template": to_record(template), "tokenizer": vocabulary(tokenizer)}
        write_json(place / RECORD, record)


def load(folder: str | Path, tokenizer: Any | None = None) -> Reward:
    """The reward model in ``folder``; of a row it reads the fields of its template's prompt.

    Raises ``UserError`` if there is none, or if ``tokenizer``, that of the model to be judged, is
    another than its own.
    """
    from peft import PeftModel

    from ft.models.load import load_tokenizer

    try:
        record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder} is no reward model, it has no {RECORD}; `ft reward` makes one"
        ) from None
    if tokenizer is not None and vocabulary(tokenizer) != record["tokenizer"]:
        raise UserError(
            f"the reward model {folder} (of {record['base']}) has another tokenizer than the model "
            "that it should judge: train one on the same base with `ft reward`"
        )
    tokenizer = load_tokenizer(record["base"])
    model = PeftModel.from_pretrained(_classifier(record["base"], tokenizer), str(folder)).eval()
    template = from_record(record["template"])
    return Reward(
        f"model {Path(folder).name}",
        lambda text, row: _score(model, tokenizer, template, text, row),
    )


def named(name: str, tokenizer: Any) -> Reward:
    """``chrf`` against the row's reference, ``number`` (the same final number), a reward model's folder, or
    a function of the user's own, ``module:function``.
    """
    return own.without_model(name) or load(name, tokenizer)


def accuracy(reward: Reward, rows: Sequence[Row]) -> float:
    """The share of pairs whose chosen answer has the higher reward."""
    return sum(reward(row["chosen"], row) > reward(row["rejected"], row) for row in rows) / len(
        rows
    )


def vocabulary(tokenizer: Any) -> str:
    """A hash of a tokenizer's pieces and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _score(
    model: Any, tokenizer: Any, template: Template, text: str, row: Mapping[str, Any]
) -> float:
    import torch

    fields = {"chosen": text, "rejected": text}
    (pair,) = drawn.encode_pairs([{**row, **fields}], template, tokenizer)
    ids = torch.tensor([pair["prompt_ids"] + pair["chosen_ids"]], device=model.device)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0, 0].item()


def _classifier(base: str, tokenizer: Any) -> Any:
    """The base with a linear head of one output on its last token; fp32 on a CPU, bf16 on a GPU."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN,
    )

    from ft.models.load import load_config

    config = load_config(base)
    if config.model_type not in KNOWN:
        raise UserError(
            f"{base} is of type {config.model_type}, for which transformers has no model with a head "
            "for rewards; Gemma 1, 2 and 3 have one"
        )
    gpu = torch.cuda.is_available()
    model = AutoModelForSequenceClassification.from_pretrained(
        str(sources.fetch(base)), num_labels=1, dtype=torch.bfloat16 if gpu else torch.float32
    )
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.to("cuda" if gpu else "cpu")
