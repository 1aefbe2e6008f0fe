"""Names and symbols of units, English and Chinese, and how a unit is read from text.

Only names are known here; what they are worth is asked of pint, in a worker
(rewards/rules/kinds/quantities.py).
"""

from __future__ import annotations

import re

MAX_UNIT_CHARS = 60

CURRENCIES = {
    "USD": "$ us$ usd dollar 美元 美金",
    "EUR": "€ eur euro 欧元",
    "GBP": "£ gbp pound_sterling british_pound 英镑",
    "CNY": "¥ rmb cny yuan 元 人民币 块 块钱 元人民币",
    "JPY": "jpy yen 日元",
    "INR": "₹ inr rupee 卢比",
    "KRW": "₩ krw won 韩元",
    "HKD": "hk$ hkd 港元 港币",
    "usd_cent": "cent ¢ 美分",
    "gbp_penny": "penny pence 便士",
    "cny_jiao": "jiao 角 毛",
}
"""Our names, which the registry of rules/quantities.py defines, and how texts write them."""

_NAMES = {
    "meter": "meter metre 米 公尺",
    "kilometer": "kilometer kilometre 千米 公里",
    "centimeter": "centimeter centimetre 厘米 公分",
    "millimeter": "millimeter millimetre 毫米",
    "decimeter": "decimeter decimetre 分米",
    "micrometer": "micrometer micrometre micron 微米",
    "nanometer": "nanometer nanometre 纳米",
    "inch": "inch inche 英寸",
    "foot": "foot feet 英尺",
    "yard": "yard 码",
    "mile": "mile 英里",
    "nautical_mile": "nautical_mile 海里",
    "light_year": "light_year lightyear 光年",
    "gram": "gram gramme 克",
    "kilogram": "kilogram kilo 千克 公斤",
    "milligram": "milligram 毫克",
    "microgram": "microgram 微克",
    "metric_ton": "tonne metric_ton ton 吨",
    "pound": "pound 磅",
    "ounce": "ounce 盎司",
    "jin": "斤 市斤",
    "second": "second 秒 秒钟",
    "millisecond": "millisecond 毫秒",
    "microsecond": "microsecond 微秒",
    "nanosecond": "nanosecond 纳秒",
    "minute": "minute 分钟",
    "hour": "hour 小时 个小时 时",
    "day": "day 天 日",
    "week": "week 周 星期 个星期",
    "month": "month 个月 月",
    "year": "year 年",
    "decade": "decade",
    "century": "century centurie 世纪 个世纪",
    "liter": "liter litre 升 公升",
    "milliliter": "milliliter millilitre 毫升",
    "deciliter": "deciliter decilitre",
    "gallon": "gallon 加仑",
    "hectare": "hectare 公顷",
    "acre": "acre 英亩",
    "newton": "newton 牛 牛顿",
    "kilonewton": "kilonewton",
    "joule": "joule 焦 焦耳",
    "kilojoule": "kilojoule 千焦",
    "megajoule": "megajoule",
    "calorie": "calorie 卡路里",
    "kilocalorie": "kilocalorie 千卡 大卡",
    "electron_volt": "electronvolt electron_volt",
    "watt": "watt 瓦 瓦特",
    "kilowatt": "kilowatt 千瓦",
    "megawatt": "megawatt 兆瓦",
    "horsepower": "horsepower 马力",
    "volt": "volt 伏 伏特",
    "kilovolt": "kilovolt 千伏",
    "millivolt": "millivolt",
    "ampere": "ampere amp 安 安培",
    "milliampere": "milliampere milliamp 毫安",
    "ohm": "ohm Ω Ω 欧 欧姆",
    "kiloohm": "kiloohm kΩ",
    "coulomb": "coulomb 库仑",
    "farad": "farad 法拉",
    "tesla": "tesla 特斯拉",
    "hertz": "hertz 赫 赫兹",
    "kilohertz": "kilohertz 千赫",
    "megahertz": "megahertz 兆赫",
    "pascal": "pascal 帕 帕斯卡",
    "kilopascal": "kilopascal 千帕",
    "atmosphere": "atmosphere 标准大气压",
    "kelvin": "kelvin 开尔文",
    "degC": "celsius degree_celsius degrees_celsius centigrade 摄氏度 °c",
    "degF": "fahrenheit degree_fahrenheit degrees_fahrenheit 华氏度 °f",
    "degree": "degree ° deg 度 ^\\circ ^{\\circ} \\circ",
    "radian": "radian 弧度",
    "mole": "mole 摩尔",
    "byte": "byte 字节",
    "bit": "bit 比特",
    "percent": "% percent",
}
# These mean something else in the other case: mm and Mm, mW and MW.
_SYMBOLS = {
    "meter": "m",
    "kilometer": "km KM Km",
    "centimeter": "cm CM",
    "millimeter": "mm",
    "decimeter": "dm",
    "micrometer": "μm um",
    "nanometer": "nm",
    "inch": "in in.",
    "foot": "ft",
    "yard": "yd",
    "mile": "mi",
    "gram": "g",
    "kilogram": "kg KG Kg",
    "milligram": "mg",
    "microgram": "μg ug mcg",
    "metric_ton": "t",
    "pound": "lb lbs lb.",
    "ounce": "oz",
    "second": "s sec secs",
    "millisecond": "ms",
    "microsecond": "μs us",
    "nanosecond": "ns",
    "minute": "min mins",
    "hour": "h hr hrs",
    "year": "yr yrs",
    "liter": "L l",
    "milliliter": "mL ml ML",
    "deciliter": "dL dl",
    "gallon": "gal",
    "hectare": "ha",
    "newton": "N",
    "kilonewton": "kN",
    "joule": "J",
    "kilojoule": "kJ KJ",
    "megajoule": "MJ",
    "calorie": "cal",
    "kilocalorie": "kcal Cal",
    "electron_volt": "eV",
    "watt": "W",
    "kilowatt": "kW KW",
    "megawatt": "MW",
    "milliwatt": "mW",
    "kilowatt_hour": "kWh kwh 度电 千瓦时",
    "horsepower": "hp",
    "volt": "V",
    "kilovolt": "kV",
    "millivolt": "mV",
    "ampere": "A",
    "milliampere": "mA",
    "kiloohm": "kohm",
    "coulomb": "C",
    "farad": "F",
    "microfarad": "μF uF",
    "tesla": "T",
    "hertz": "Hz hz",
    "kilohertz": "kHz",
    "megahertz": "MHz",
    "gigahertz": "GHz",
    "pascal": "Pa",
    "kilopascal": "kPa",
    "megapascal": "MPa",
    "atmosphere": "atm",
    "bar": "bar",
    "kelvin": "K",
    "radian": "rad",
    "mole": "mol",
    "byte": "B",
    "kilobyte": "kB KB",
    "megabyte": "MB",
    "gigabyte": "GB",
    "terabyte": "TB",
    "mile/hour": "mph",
    "kilometer/hour": "kph kmh kmph",
}


def _table(source: dict[str, str]) -> dict[str, str]:
    return {
        alias.replace("_", " "): name for name, line in source.items() for alias in line.split()
    }


_BY_NAME = _table(_NAMES) | _table(CURRENCIES)
_BY_SYMBOL = _table(_SYMBOLS)
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mathbf|mbox|rm)\s?\{([^{}]*)\}|\\(?:rm|,|;|!)\s?|~")
_POWER = re.compile(r"(.{1,24}?)\s?(?:\^\s?\{?(-?[1-4])\}?|(?<=m)([23]))")
_SQUARE = {"square ": 2, "sq ": 2, "sq. ": 2, "cubic ": 3, "平方": 2, "立方": 3}
_PER = re.compile(r"\s?(?:/|\bper\b|每)\s?")
_PRODUCT = re.compile(r"\s?(?:\\cdot|[*⋅·-])\s?|\s")

Unit = tuple[tuple[str, int], ...]
"""Names with their exponents, sorted: km/h is (("hour", -1), ("kilometer", 1))."""


def read_unit(text: str) -> Unit | None:
    """Return the unit that the text is, in any of its spellings, or None.

    The text has been through `plain`. Example: read_unit("m/s^{2}") and
    read_unit("metres per second squared") are the same.
    """
    text = _TEXT.sub(r"\1", text).strip()
    if not 0 < len(text) <= MAX_UNIT_CHARS:
        return None
    powers: dict[str, int] = {}
    pieces = _PER.split(text.replace("(", "").replace(")", ""))
    if len(pieces) > 3 or not all(pieces):
        return None
    for place, piece in enumerate(pieces):
        whole = _one_unit(piece)
        factors = [whole] if whole else [_one_unit(part) for part in _PRODUCT.split(piece.strip())]
        for factor in factors:
            if factor is None:
                return None
            for name, power in factor:
                powers[name] = powers.get(name, 0) + (-power if place else power)
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def currency_of(sign: str) -> str | None:
    """The currency a sign in front of an amount stands for, such as `$`."""
    return _BY_NAME.get(sign.casefold().strip())


def is_money(unit: Unit) -> bool:
    return len(unit) == 1 and unit[0][0] in CURRENCIES and unit[0][1] == 1


def spellings(unit: Unit) -> list[str]:
    """Every way to write a unit of one name; nothing for a compound one."""
    if len(unit) != 1 or unit[0][1] != 1:
        return []
    name = unit[0][0]
    return [
        alias for table in (_BY_NAME, _BY_SYMBOL) for alias, one in table.items() if one == name
    ]


def _one_unit(text: str) -> list[tuple[str, int]] | None:
    text = text.strip()
    for word, power in _SQUARE.items():
        if text.casefold().startswith(word):
            name = _name(text[len(word) :])
            return [(name, power)] if name else None
    for word, power in ((" squared", 2), (" cubed", 3)):
        if text.casefold().endswith(word):
            name = _name(text[: -len(word)])
            return [(name, power)] if name else None
    if match := _POWER.fullmatch(text):
        name = _name(match[1])
        return [(name, int(match[2] or match[3]))] if name else None
    name = _name(text)
    if name is None:
        return None
    over, _, under = name.partition("/")
    return [(over, 1), (under, -1)] if under else [(over, 1)]


def _name(text: str) -> str | None:
    text = text.strip()
    if text in _BY_SYMBOL:
        return _BY_SYMBOL[text]
    word = " ".join(text.casefold().split())
    for candidate in (word, word.removesuffix("s"), word.removesuffix("es")):
        if candidate in _BY_NAME:
            return _BY_NAME[candidate]
    return None
