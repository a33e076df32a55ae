"""Class names as the datasets' own files have them, apart from this project's prompt files."""

import re


def _words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


# batches.meta of cifar-10-python.tar.gz, and class_names.txt of stl10_binary.tar.gz.
CIFAR10 = _words("airplane automobile bird cat deer dog frog horse ship truck")
STL10 = _words("airplane bird car cat deer dog horse monkey ship truck")

# meta of cifar-100-python.tar.gz: fine_label_names, coarse_label_names; and, from the images'
# labels, the coarse one of each fine one.
CIFAR100 = _words("""
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""")
CIFAR100_COARSE = _words("""
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
""")
CIFAR100_COARSE_OF_FINE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]

# annotations/list.txt of the pets by its CLASS-ID: cats begin with a capital, dogs do not.
PETS37 = _words("""
    Abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle Bengal Birman Bombay
    boxer British_Shorthair chihuahua Egyptian_Mau english_cocker_spaniel english_setter
    german_shorthaired great_pyrenees havanese japanese_chin keeshond leonberger Maine_Coon
    miniature_pinscher newfoundland Persian pomeranian pug Ragdoll Russian_Blue saint_bernard
    samoyed scottish_terrier shiba_inu Siamese Sphynx staffordshire_bull_terrier wheaten_terrier
    yorkshire_terrier
""")
