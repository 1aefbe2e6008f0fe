"""Word lists of the rendered tables, charts and pages. The names are made up."""

FIRST_NAMES = tuple(
    "Agnes Bruno Clara Dmitri Edith Farid Greta Hugo Irene Jonas Karin Leander Mina Nils Olga "
    "Pascal Quentin Rosa Stefan Thea Ulrich Vera Walter Xenia Yusuf Zoe".split()
)
LAST_NAMES = tuple(
    "Abel Brandt Castell Dorn Ekman Falk Grau Holt Ibsen Jarosz Keller Lund Morel Novak Olsen "
    "Petrov Quist Rossi Sandor Thorne Urban Vidal Wolff Yilmaz Zander".split()
)
TOWNS = tuple(
    "Altmar Brenwick Corvale Dunmoor Eastley Farnholt Grenby Halstead Ironbridge Jarrow Kelso "
    "Lindham Marrow Norvik Oakhurst Penrith Quarley Rosmere Stanwick Tolbury Umbria Velden "
    "Westford Yarmouth Zelten".split()
)
SHIPS = ("Albatross", "Blue Heron", "Constance", "Dolphin", "Evening Star", "Fortuna", "Swift")
GOODS = ("barley", "coffee", "honey", "linen", "olive oil", "pepper", "salt", "tea", "wool")
BUILDINGS = ("library", "theatre", "town hall", "railway station", "museum", "market hall")
FITTINGS = ("windows", "rooms", "columns", "lamps", "benches", "doors")
CLUBS = ("Chess Club", "Garden Society", "Choral Union", "Astronomy Circle", "Walking Club")
TOPICS = ("old maps", "night skies", "river birds", "bridges", "wild orchids", "stone tools")
ROOMS = ("Blue Room", "Great Hall", "Old Chapel", "Reading Room", "Garden House")
TRADES = ("painter", "composer", "sculptor", "engraver", "weaver", "potter")
WORKS = {
    "painter": "paintings",
    "composer": "songs",
    "sculptor": "statues",
    "engraver": "prints",
    "weaver": "tapestries",
    "potter": "vases",
}
MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SUBJECTS = ("Art", "Biology", "Chemistry", "History", "Music", "Physics", "Sport")
FRUITS = ("Apples", "Bananas", "Cherries", "Grapes", "Lemons", "Melons", "Pears", "Plums")
