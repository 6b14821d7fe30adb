def draw_transfer(results):
    return ""
