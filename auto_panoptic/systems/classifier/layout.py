"""How the report draws this network; see the layout of ``panoptic_fpn``."""

MODELS = ("BackboneClassifier",)
LANES = (
    (
        {
            "sites": "backbone",
            "name": "Backbone: ShuffleNetV2 blocks, stage by stage",
            "stages": "MODEL.SHUFFLENET.STAGE_REPEATS",
            "published": (8, 8, 16, 8),
        },
    ),
    ({"box": "pooling and classifier"},),
)
