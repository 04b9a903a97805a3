"""Configs with the keys of EasyDistill 1's and 2's own, in as few words as they take."""

from __future__ import annotations

import copy
from typing import Any

Config = dict[str, Any]

TEMPLATE = "chat_template.jinja"
VLLM: Config = {
    "enable_chunked_prefill": True,
    "seed": 777,
    "gpu_memory_utilization": 0.9,
    "temperature": 0.8,
    "trust_remote_code": True,
    "enforce_eager": False,
    "max_model_len": 2048,
    "max_new_tokens": 256,
}
API: Config = {"base_url": "ENDPOINT", "api_key": "TOKEN", "stream": True, "max_new_tokens": 256}
TRAINING: Config = {
    "output_dir": "result/",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "max_length": 512,
    "save_steps": 100,
    "logging_steps": 1,
    "learning_rate": 1e-5,
    "weight_decay": 0.01,
    "warmup_ratio": 0.2,
    "lr_scheduler_type": "linear",
}
SHORT_TRAINING = {name: value for name, value in TRAINING.items() if name != "max_length"}
STUDENT: Config = {"student": "org/student"}
BOTH: Config = {"teacher": "org/teacher", **STUDENT}
ROWS: Config = {"instruction_path": "rows.json", "labeled_path": "labeled.json", "template": TEMPLATE, "seed": 7}
KD: Config = {"kd_ratio": 0.2, "max_seq_length": 512, "distillation_type": "forward_kld"}
PROMPTS = {
    "instruction_expansion": "Write another one, in <answer></answer>. The examples:",
    "instruction_refinement": "Write it better, in <answer></answer>:",
    "instruction_response_extraction": "Make <instruction></instruction> and <response></response> of:",
    "cot_generation": "Think in {steps} first:",
    "cot_long2short": "Shorten, and output nothing else.",
    "cot_short2long": "Lengthen, and output nothing else.",
}


def _synthesis(job: str, way: str) -> Config:
    dataset: Config = {"input_path": "seeds.json", "output_path": "made.json"}
    if job == "instruction_expansion":
        dataset |= {"num_in_context_samples": 2, "num_output_samples": 5}
    if way == "api":
        return {"job_type": f"{job}_api", "dataset": dataset, "inference": {**API, "prompt": PROMPTS[job]}}
    return {
        "job_type": f"{job}_batch",
        "dataset": {**dataset, "template": TEMPLATE},
        "models": {"teacher": "org/teacher"},
        "inference": {"prompt": PROMPTS[job], **VLLM},
    }


def _scored(job: str) -> Config:
    inference = {"base_url": "ENDPOINT", "api_key": "TOKEN", "max_new_tokens": 1024}
    return {
        "job_type": job,
        "dataset": {"input_path": "in.json", "output_path": "out.json"},
        "inference": inference,
    }


def _kd(job: str, inference: Config, models: Config, **sections: Config) -> Config:
    return {
        "job_type": job,
        "dataset": ROWS,
        "inference": inference,
        "models": models,
        "training": TRAINING,
        **sections,
    }


_LOGITS = {**ROWS, "logits_path": "logits.json"}
_TOP = {**VLLM, "top_logits_num": 10}
_SYSTEMS = {"positive_system_prompt": "Be good.", "negative_system_prompt": "Be bad."}
_POLICY: Config = {
    "dataset": {"instruction_path": "rows.json", "template": TEMPLATE, "train_ratio": 0.7, "seed": 7},
    "models": {"reward": "org/reward", **STUDENT},
}
_STEPS: Config = {"step_models": {"Agent": {"model_name": "m"}}, "processing": {"max_workers": 2}, "api_configs": {}}

_AS_THEY_ARE: dict[str, Config] = {
    "kd_black_box_api": _kd("kd_black_box_api", {**API, "system_prompt": "Be kind."}, STUDENT),
    "kd_black_box_local": _kd("kd_black_box_local", VLLM, BOTH),
    "kd_white_box": {**_kd("kd_white_box", _TOP, BOTH, distillation=KD), "dataset": _LOGITS},
    "mmkd_black_box_api": _kd("mmkd_black_box_api", {**API, "system_prompt": ""}, STUDENT),
    "mmkd_black_box_local": _kd("mmkd_black_box_local", VLLM, BOTH),
    "mmkd_white_box": {**_kd("mmkd_white_box", _TOP, BOTH, distillation=KD), "dataset": _LOGITS},
    "cot_eval_api": _scored("cot_eval_api"),
    "mmcot_eval_api": _scored("mmcot_eval_api"),
    "instruct_eval_api": _scored("instruct_eval_api"),
    **{f"{job}_{way}": _synthesis(job, way) for job in PROMPTS for way in ("api", "batch")},
}
_ANEW: dict[str, Config] = {
    "instruct_sample_api": _scored("instruct_sample_api"),
    "kd_white_box_train_only_multi": {
        **_kd("kd_white_box_train_only_multi", _TOP, {"teacher": ["org/a", "org/b"], **STUDENT}, distillation=KD),
        "dataset": {**ROWS, "logits_path": ["a.jsonl", "b.jsonl"]},
    },
    "rank_dpo_api": {
        **_kd("rank_dpo_api", {**API, "system_prompt": "Be kind."}, STUDENT),
        "training": {**SHORT_TRAINING, "beta": 0.3},
    },
    # It was shipped under the other one's job type.
    "rank_dpo_local": {
        **_kd("rank_dpo_api", {"system_prompt": "Be kind.", **VLLM}, BOTH),
        "training": {**SHORT_TRAINING, "beta": 0.3},
    },
    "rl_reward_api": _kd("rl_reward_api", {**API, **_SYSTEMS}, STUDENT),
    "rl_reward_local": _kd("rl_reward_local", {**_SYSTEMS, **VLLM}, BOTH),
    "rl_grpo": {"job_type": "rl_grpo", **_POLICY, "training": SHORT_TRAINING},
    "rl_ppo": {
        "job_type": "rl_ppo",
        **_POLICY,
        "training": {
            **{name: value for name, value in SHORT_TRAINING.items() if name != "num_train_epochs"},
            "total_episodes": 100,
            "missing_eos_penalty": 0.5,
            "stop_token": "eos",
            "response_length": 300,
        },
    },
}
_REFUSED: dict[str, tuple[Config, str]] = {
    "mmkd_rl_grounding": (_kd("mmkd_rl_grounding", VLLM, BOTH), "rewards.grounding"),
    "speckd_local": (
        {
            "job_type": "speckd_local",
            "dataset": {"instruction_path": "rows.jsonl", "labeled_progress_dir": "p", "labeled_path_raw": "r.jsonl"},
            "models": BOTH,
            "inference": {"batch_size": 8, "vllm_config": {}, "sampling_config": {}},
            "training": {"trainpath": "a", "testpath": "b", "deepspeed_config": {}},
        },
        "draft models",
    ),
    **{
        job: ({"job_type": job, "inference": _STEPS}, "agents")
        for job in ("agentkd_data_gen", "agentkd_solve_task", "agentkd_rubrics_filter")
    },
    "agentkd_distill": (
        {"job_type": "agentkd_distill", "dataset": {"labeled_path": "l.json"}, "models": STUDENT, "training": {}},
        "agents",
    ),
}

AS_THEY_ARE = copy.deepcopy(_AS_THEY_ARE)
"""Those of EasyDistill 1 that are valid as they are."""
ANEW = copy.deepcopy(_ANEW)
"""Those of EasyDistill 1 that must be written anew."""
REFUSED = copy.deepcopy(_REFUSED)
"""Those of EasyDistill 1 that have no equal, with a word of the reason."""

# --- EasyDistill 2 -----------------------------------------------------------------------------------------------

EAS: Config = {
    "type": "pai_eas",
    "endpoint_url": "${EAS_ENDPOINT_URL}",
    "token": "${EAS_TOKEN}",
    "model_id": "teacher-4b",
    "timeout": 60.0,
    "max_retries": 3,
}
TOKEN: Config = {
    "type": "pai_token",
    "api_key": "${PAI_TOKEN_API_KEY}",
    "base_url": "${PAI_TOKEN_BASE_URL}",
    "model_id": "teacher-k2",
}
_HOW: Config = {"show_progress": True, "max_workers": 3}
_ASKED: Config = {"temperature": 0.6, "max_tokens": 900, **_HOW}
GENERATION: Config = {"system_prompt": "Be brief.", "temperature": 0.5, "max_tokens": 700}
INSTRUCT_SCORES = ["informativeness", "helpfulness", "generalization", "correctness"]
COT_SCORES = ["reasoning_verbosity", "cognitive_difficulty", "logical_correctness"]
OUT: Config = {"input_path": "seeds.jsonl", "output_path": "out.jsonl"}


def _eval(metrics: list[str], tokens: int) -> Config:
    return {
        "prompts_file": "prompts/judge.yaml",
        "metrics": metrics,
        "temperature": 0.0,
        "max_tokens": tokens,
        "max_workers": 4,
    }


def _stage(name: str, output: str | None = None, **config: Any) -> Config:
    return {"stage": name, "config": config, **({"output_path": output} if output else {})}


_EXPAND = _stage(
    "instruction_expansion",
    "one.jsonl",
    prompt_template_file="prompts/expand.txt",
    num_in_context_samples=2,
    num_output_samples=3,
    **_ASKED,
)
_REFINE = _stage("instruction_refinement", "two.jsonl", prompt_template_file="prompts/refine.txt", **_ASKED)
_LIMITS: Config = {"skip_empty": True, "min_length": 10, "max_length": 8192}


def _preference(scorer: str, **scoring: Any) -> Config:
    return {
        "job_type": "dpo_data_build",
        "backend": EAS,
        "dataset": OUT,
        "generation": {**GENERATION, **_HOW},
        "preference": {"scorer": scorer, "n": 2},
        "pipeline": [
            _stage("generate_candidates", "c.jsonl", n=2, **_HOW),
            _stage("score_candidates", "s.jsonl", scorer=scorer, **scoring, **_HOW),
            _stage(
                "build_preference_pairs",
                "p.jsonl",
                min_margin=0.0,
                max_pairs_per_prompt=1,
                require_chosen_correct=False,
            ),
            _stage("build_preference_dataset", format="llama_factory_alpaca"),
        ],
    }


VERSION_2: dict[str, Config] = copy.deepcopy(
    {
        "instruct_distill": {
            "backend": EAS,
            "generation": {**GENERATION, **_HOW},
            "dataset": {**OUT, "instruction_key": "instruction", "skip_empty": True, "min_length": 10},
        },
        "cot_distill": {
            "job_type": "cot_distill",
            "backend": TOKEN,
            "cot": {"prompt_template_file": "prompts/think.txt", **_ASKED},
            "dataset": {**OUT, "problem_key": "problem"},
        },
        **{
            job: {
                "job_type": job,
                "backend": EAS,
                "cot": {"prompt_template_file": "prompts/rewrite.txt", **_ASKED},
                "dataset": {**OUT, "problem_key": "problem", "answer_key": "answer", "output_format": "cot"},
            }
            for job in ("cot_long2short", "cot_short2long")
        },
        "instruction_expansion": {
            "job_type": "instruction_expansion",
            "backend": EAS,
            "synthesis": _EXPAND["config"],
            "dataset": {**OUT, "instruction_key": "instruction", "output_format": "instruction"},
        },
        "instruction_refinement": {
            "job_type": "instruction_refinement",
            "backend": TOKEN,
            "synthesis": _REFINE["config"],
            "dataset": {**OUT, "instruction_key": "instruction", "output_format": "instruction"},
        },
        "instruction_response_extraction": {
            "job_type": "instruction_response_extraction",
            "backend": TOKEN,
            "synthesis": {"prompt_template_file": "prompts/extract.txt", **_ASKED},
            "dataset": {**OUT, "text_key": "text", "output_format": "instruction_response"},
        },
        "instruct_eval": {
            "job_type": "instruct_eval",
            "backend": EAS,
            "eval": {**_eval(INSTRUCT_SCORES, 256), "show_progress": True},
            "dataset": OUT,
        },
        "cot_eval": {
            "job_type": "cot_eval",
            "backend": TOKEN,
            "eval": {**_eval(COT_SCORES, 2048), "show_progress": True},
            "dataset": OUT,
        },
        "augmented_instruct_distill": {
            "job_type": "augmented_instruct_distill",
            "backend": EAS,
            "generation": GENERATION,
            "pipeline": [_EXPAND, _REFINE, _stage("instruct_distill", **_HOW)],
            "dataset": {**OUT, **_LIMITS},
        },
        "advanced_instruct_distill": {
            "job_type": "advanced_instruct_distill",
            "backend": TOKEN,
            "generation": GENERATION,
            "eval": _eval(INSTRUCT_SCORES, 256),
            "pipeline": [
                _EXPAND,
                _REFINE,
                _stage("generate", "three.jsonl", **_HOW),
                _stage("instruct_eval", "four.jsonl", **_HOW),
                _stage(
                    "quality_filter",
                    "five.jsonl",
                    min_scores={"informativeness": 6, "helpfulness": 5, "generalization": 4, "correctness": True},
                    require_all_metrics=True,
                    keep_top_ratio=0.7,
                ),
                _stage("build_sft"),
            ],
            "dataset": {**OUT, **_LIMITS},
        },
        "balanced_instruct_distill": {
            "job_type": "balanced_instruct_distill",
            "backend": EAS,
            "generation": GENERATION,
            "eval": _eval(INSTRUCT_SCORES, 256),
            "pipeline": [
                _EXPAND,
                _stage(
                    "instruction_balance",
                    "two.jsonl",
                    instruction_key="instruction",
                    category_key="category",
                    categories=["General"],
                    target_distribution={"General": 1.0},
                    category_prompt="One of {categories}, in <answer>…</answer>: {instruction}",
                    seed=42,
                    **_ASKED,
                ),
                _stage("generate", "three.jsonl", **_HOW),
                _stage("build_sft"),
            ],
            "dataset": {**OUT, **_LIMITS},
        },
        "advanced_cot_distill": {
            "job_type": "advanced_cot_distill",
            "backend": TOKEN,
            "generation": GENERATION,
            "sft": _LIMITS,
            "eval": _eval(COT_SCORES, 256),
            "pipeline": [
                _stage("cot_distill", "one.jsonl", prompt_template_file="prompts/think.txt", **_ASKED),
                _stage("cot_rvcd_score", "two.jsonl", **_HOW),
                _stage(
                    "cot_mix_by_rv_cd",
                    "three.jsonl",
                    mode="sft",
                    cd_bins=[0, 3, 6, 10],
                    rv_target="matched",
                    samples_per_bin=100,
                    min_correctness=1,
                ),
                _stage("build_sft"),
            ],
            "dataset": OUT,
        },
        "dpo_instruct": _preference(
            "llm_judge", metrics=["helpfulness", "correctness"], temperature=0.0, max_tokens=512
        ),
        "dpo_cot": _preference("cot", instruction_key="problem", answer_key="answer", alpha=0.001),
    }
)
"""Name → a config with the keys of EasyDistill 2's own."""
