"""Losses between a student's outputs and cached targets, each one entry of LOSSES.

q student embedding, k target, a_j anchors, all normalised; P(x) = softmax_j(x . a_j / tau); f
backbone features. Every loss has a `weight` (1; 0 switches it off), gives one value per sample and
computes in float32 under any autocast. tau null is the teacher's own, 1 / logit_scale.

========== ====================================== ========================== ====================
entry      value of a sample                      source                     options (default)
========== ====================================== ========================== ====================
ism        -q . k                                 BeamCLIP, Eq. 4            none
csm_ce     H(P(k), P(q))                          BeamCLIP, Eq. 5-7          tau (null)
entmin     H(P(q))                                BeamCLIP, Eq. 7            tau (null)
kd         T^2 KL(P(k) || P(q)) at tau T;         Hinton et al. 2015,        tau (null), T (1),
           reverse: T^2 KL(P(q) || P(k));         section 2;                 reduction (sum),
           mean: divided by A                     BeamCLIP, section 4.3      direction (forward)
mse        |q - k|^2 / D                          CLIP-KD, its FD            none
crd        -log softmax_j(q . k_j / tau) at k;    InfoNCE, Eq. 4;            tau (0.07), bank (0)
           k_j: the step's targets and the bank   BeamCLIP, section 4.3
seed       H(softmax(k . Q / tau_teacher),        SEED, section 3.2          tau_teacher (0.01),
           softmax(q . Q / tau_student));                                    tau_student (0.2),
           Q: k and the bank                                                 bank (65536)
rkd        distance * mean_j h(d_ij / mu)         RKD, section 3.2           distance (1),
           + angle * mean_jk h(cos j-i-k);                                   angle (2)
           h: smooth L1, teacher to student
supervised -log softmax(W f + b)_label            smoothing: Szegedy et al.  label_smoothing (0)
                                                  2016, section 7
========== ====================================== ========================== ====================

Further teachers (TargetBatch.others): csm_ce and kd match the mean of the teachers' P; the others
look at the first teacher alone.
"""

from pipeline.losses.anchors import AnchorOptions
from pipeline.losses.contract import Loss, Sizes, WeightOptions
from pipeline.losses.terms import LOSSES, Term, parse_term, parse_terms, resolve_tau
from pipeline.losses.total import LossSum

__all__ = [
    "LOSSES",
    "AnchorOptions",
    "Loss",
    "LossSum",
    "Sizes",
    "Term",
    "WeightOptions",
    "parse_term",
    "parse_terms",
    "resolve_tau",
]
