"""How the report draws this network; see the layout of ``panoptic_fpn``."""

MODELS = ("UnifiedPanoptic",)
LANES = (
    (
        {
            "sites": "backbone",
            "name": "Backbone: ShuffleNetV2 blocks, stage by stage",
            "stages": "MODEL.SHUFFLENET.STAGE_REPEATS",
        },
    ),
    ({"box": "feature pyramid"},),
    (
        {"sites": "sem_seg", "name": "Semantic decoder"},
        {"sites": "mask", "name": "Mask head"},
        {"sites": "affinity", "name": "Affinity decoder"},
    ),
    ({"box": "potential, spread by affinities: panoptic logits"},),
)
