"""Losses between a student's outputs and cached targets, each one entry of LOSSES.

q student embedding, k target, a_j anchors, all normalised; P(x) = softmax_j(x . a_j / tau); f
backbone features. For a student of images and texts v and w are its normalised outputs for both, z
a thrown-away head (layer norm, linear map) on either; r is k at the length that the teacher gave
it. Every loss has a `weight` (1; 0 switches it off), gives one value per sample and computes
in float32 under any autocast. tau null is the teacher's own, 1 / logit_scale.

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
itc        (-log softmax_j(s v . w_j) at w        CLIP, Figure 3;            levels ([output]),
           - log softmax_j(s w . v_j) at v) / 2;  Cares et al. 2025          mask_same_image (true)
           v_j, w_j: of all ranks
kd_bank    -log softmax_j(s z . k_j) at k;        Cares et al. 2025          bank (65536),
           k_j: the step's targets and the bank                              mask_same_image (true)
kd_inbatch the same, without a bank               Cares et al. 2025          mask_same_image (true)
kd_mse     |z - r|^2 / D                          Cares et al. 2025          none
kd_kl      T^2 KL(softmax(r / T) ||               Aytar et al. 2017;         T (1), top_k (null)
           softmax(z / T)); r: the logits of a    Cares et al. 2025
           supervised teacher
========== ====================================== ========================== ====================

The last five need a student of images and texts, and captions. A value with z is the mean of that
for the image and that for the text, whose target is its image's. s is learned, begins at 1 / 0.07
and stays in [1, 100]. Cares et al. 2025 (IEEE IDAACS, doi 10.1109/IDAACS68557.2025.11322222) is the
second document as published.

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
