CLASSES = ()


def add_menus():
    pass


def remove_menus():
    pass
