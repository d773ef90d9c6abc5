"""The classes of COCO and VOC in the orders in which published detectors know them."""

# By raw category id: position = id - 1; ids without a class are empty.
COCO_CLASSES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag tie suitcase "
    "frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle - "
    "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair "
    "couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone microwave oven "
    "toaster sink refrigerator - book clock vase scissors teddy_bear hair_drier toothbrush"
)
COCO_CLASSES = ["" if name == "-" else name.replace("_", " ") for name in COCO_CLASSES.split()]

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip

# Files of weights from elsewhere do not name their classes: the number tells which they are ("" is no class).
CLASSES_BY_NUMBER = {
    91: ["", *COCO_CLASSES],  # torchvision, where dense heads keep a place for the background
    90: COCO_CLASSES,  # effdet, and torchvision without the background
    80: [name for name in COCO_CLASSES if name],  # darknet, detectron2, mmdet
    20: VOC_CLASSES,
}
