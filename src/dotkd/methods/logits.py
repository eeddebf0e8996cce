"""The cards of the objectives on logits; the functions are in `dotkd.losses`.

p and q are the teacher's and the student's softmax(logits / T), p^ and q^ those without the target class, renormalised.
"""

from __future__ import annotations

from types import MappingProxyType

from dotkd.methods.card import Card

LOGIT_CARDS: dict[str, Card] = {
    "kd": Card(
        title="Knowledge distillation",
        paper="Hinton, Vinyals & Dean 2015, arXiv 1503.02531",
        equation="T^2 KL(p || q)",
        task_weight=0.1,
        distill_weight=0.9,
        temperature=4.0,
    ),
    "dkd": Card(
        title="Decoupled knowledge distillation",
        paper="Zhao et al. 2022, arXiv 2203.08679, equation 7",
        equation="T^2 (alpha KL((p_t, 1 - p_t) || (q_t, 1 - q_t)) + beta KL(p^ || q^))",
        warmup_epochs=20.0,
        temperature=4.0,
    ),
    "jsd": Card(
        title="Generalised Jensen-Shannon divergence",
        paper="Agarwal et al. 2023, arXiv 2306.13649, section 2",
        equation="T^2 (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q",
        # Published for language models alone: the weights of KD, whose place it takes.
        task_weight=0.1,
        distill_weight=0.9,
        temperature=4.0,
    ),
    "dist": Card(
        title="DIST, distillation of relations",
        paper="Huang et al. 2022, arXiv 2205.10536",
        equation="T^2 (beta mean_i(1 - corr(q_i, p_i)) + gamma mean_k(1 - corr(q^k, p^k)))",
        distill_weight=2.0,
        temperature=4.0,
    ),
    "ls_kd": Card(
        title="Logit standardisation",
        paper="Sun et al. 2024, arXiv 2403.01427, algorithm 1",
        equation="T^2 KL(p || q) of Z(teacher), Z(student), Z(z) = (z - mean z) / std z",
        task_weight=0.1,
        distill_weight=9.0,
        temperature=2.0,
    ),
    "nkd": Card(
        title="Normalised knowledge distillation",
        paper="Yang et al. 2023, arXiv 2303.13005",
        equation="-p_t log q_t - gamma T^2 sum_i p^_i log q^_i",
        temperature=1.0,
    ),
    "mlkd": Card(
        title="Multi-level logit distillation",
        paper="Jin, Wang & Lin, CVPR 2023",
        equation="sum_T T^2 KL(p || q) + |P P' - Q Q'|^2 / N + |P' P - Q' Q|^2 / C",
        task_weight=0.1,
        distill_weight=0.9,
        temperature=4.0,
    ),
    "crld": Card(
        title="Consistency-regularised logit distillation",
        paper="Zhang et al. 2024, arXiv 2412.16493",
        equation="T^2 (within m_w (KL(P || Q) + KL(P' || Q')) + cross m_s (KL(P || Q') + KL(P' || Q)))",
        temperature=4.0,
    ),
    "deepkd": Card(
        title="DeepKD",
        paper="Huang et al. 2025, arXiv 2505.15133",
        equation="T^2 alpha KL((p_t, 1 - p_t) || (q_t, 1 - q_t)); T^2 (1 - p_t) KL(p^ || q^) over the top k",
        task_weight=0.5,
        distill_weight=0.5,
        temperature=4.0,
        streams=MappingProxyType({"target": "target", "nontarget": "nontarget"}),
    ),
    "adakd": Card(
        title="AdaKD, token-adaptive distillation",
        paper="Xie et al. 2025, arXiv 2510.11615, equations 3 to 10",
        equation="mean over the hardest tokens of tau_i^2 KL(q_i || p_i), tau_i = T exp(-c h_i)",
        # Likewise published for language models.
        task_weight=0.1,
        distill_weight=0.9,
        temperature=1.0,
    ),
}
