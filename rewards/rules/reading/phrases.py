"""The wording that rewards/rules/reading/statements.py reads: verbs, hedges, denials, openings.

Every expression is bounded, so that matching stays linear.
"""

from __future__ import annotations

import re

HEDGE = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibly|probably|alternatively|might|may be|could be"
    r"|unsure|guess"
    r"|unclear|uncertain|likely|depending|depends|not sure|and/or)\b"
    r"|或|也许|可能|大概|要么|不确定|不一定|左右",
    re.IGNORECASE,
)
GRADER = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}"
    r"\b(?:reference|instructions?|rubric|prompts?|rules|grading|grader|above|previous)\b"
    r"|\b(?:mark|grade|score|count|rate|treat|accept|consider|evaluate)\b"
    r" (?:this|it|me|my|the|that|your|any|all|as|answer|response)\b[^.\n]{0,30}"
    r"\b(?:as )?(?:correct|right|full marks|full credit|true|1\.0|100%|passed)\b"
    r"|\bwhatever\b[^.\n]{0,40}\b(?:reference|correct|right|key|answer|is|says)\b"
    r"|\b(?:same as|equal to|equals|matches|identical to|see|per|according to|in|copy|is)"
    r" (?:the |your )?(?:reference|answer key|gold|ground truth|expected answer|correct answer$)"
    r"|\b(?:reference|expected|gold|ground[- ]truth) (?:answer|solution|label)\b"
    r"|\b(?:dear |the |hey |hello )?(?:grader|verifier|evaluator|judge)\b\s?[,:]"
    r"|\b(?:grader|verifier|evaluator) (?:must|should|has to|needs to|will)\b"
    r"|\b(?:to|for|as) the (?:grader|verifier|evaluator)\b"
    r"|\b(?:give|award|assign|deserves?|return)\b[^.\n]{0,30}"
    r"\b(?:full (?:marks|credit|score|points)|maximum (?:score|reward)|reward"
    r"|score of 1|1\.0|true)\b"
    r"|\b(?:system|assistant|user)\s?(?:prompt|message|override|:)"
    r"|\b(?:this|my|the) (?:answer|response|solution) is (?:100% )?correct\b"
    r"|忽略[^。\n]{0,20}(?:参考|标准|指令|指示|评分|规则|要求|以上|之前)"
    r"|(?:请|应|务必)?(?:判(?!断)|评|给|打|标记)[^。\n]{0,10}(?:为正确|为对|满分|正确|通过)"
    r"|参考答案|标准答案|正确答案就是(?:参考|标准)|阅卷|评分(?:员|器|者|系统|标准)|无论[^。\n]{0,20}(?:参考|答案)",
    re.IGNORECASE,
)
LEAD = re.compile(
    r"(?:(?:so|therefore|thus|hence|finally|consequently|then|in conclusion|in total|in short"
    r"|overall|altogether|answer|result|solution|final result|sure|ok|okay|well|only|both|just"
    r"|yes(?=\s?,)|∴)\b"
    r"\s?[,:：]?\s?|(?:因此|所以|故|即|综上所述?|于是|因而|结果|最后|那么|总之|解|答)\s?[,，:：]?\s?)+",
    re.IGNORECASE,
)
WE_GET = re.compile(
    r"(?:[a-z]{3,12}ing\b[^.;\n]{0,40}?)?(?:\bwe|\bi|\byou|\bone)"
    r" (?:can |would |will )?(?:get|have|find|obtain|conclude|choose|pick|select"
    r"|believe|think|see|know|say|answer|go with|would say|will go with)\b(?: that)?\s?:?\s?"
    r"|(?:this|which|it) (?:gives|yields|means|makes)"
    r"(?: that)?\s?|(?:可得|得到|得出|得|我们得到|(?:本题)?(?:我?选)|我认为是?"
    r"|解得|选择|选|应选|应该选)\s?[:：]?\s?",
    re.IGNORECASE,
)
COPULA = re.compile(
    r"(?<=\s)(?:(?:has|have) an? [a-z]{1,12} of"
    r"|(?:is|was|are|were) (?:called|named|made (?:up )?of|composed of"
    r"|[a-z]{3,12}(?:ed|en|wn|nt|de|ng) by|equal to"
    r"|located (?:in|at)|found (?:in|at)|known as|in|on|by|at)"
    r"|is|are|was|were|equals|equal|becomes|costs|has|have|had|takes|took|gets|got|needs"
    r"|makes|weighs|measures|contains(?!\s*[$\\{\[(])|sold|bought|ate|earned|earns|paid|pays|spent|lasts|travels"
    r"|traveled|travelled|totals|remains|does|holds|consists? of|says|reads|shows|displays"
    r"|gives?|yields?|leaves|cost|produces|(?:comes|came|amounts|amounted|adds up"
    r"|sums|works out) to"
    r"|ends? up with|left with|in|on|at|so)\b"
    r"\s?(?:just|only|exactly|about to be|:|therefore"
    r"|thus|then|simply)?\s{0,3}"
    r"|^(?:it|that|this|there|he|she|they)(?:'s|'re)\s+"
    r"|(?:还剩下?|剩下?|一共有?|总共有?|共有?|等于|应为|应是|约为|就是|是|为|有|需要?|花了?|[走跑骑飞用买卖]了|全[程长]|在|叫做?|得)\s?",
    re.IGNORECASE,
)
# Says something of the answer, and not which it is.
ABOUT_ANSWER = re.compile(
    r"\b(?:answer|result|solution) (?:has|ends|starts|begins|contains|lies)\b"
    r"|\b(?:of|than) the (?:answer|result)\b",
    re.IGNORECASE,
)
# Other verbs than the question's say something else: "ate" does not answer what is left.
VERB = re.compile(
    r"sold|bought|ate|earned|earns|paid|pays|spent|reads|makes|leaves|produces|holds|needs|travel\w*",
    re.IGNORECASE,
)
# "The car's neighbour", "the neighbour of the car": of what the sentence speaks.
OWNED = re.compile(r"['’]s (\w+)\s*$|^(?:so )?the (\w+) of\b", re.IGNORECASE)
VALUE_FIRST = re.compile(
    r"(.{1,80}?) (?:is|was|are|were) (?:the|a|an|correct|right|my)\b(.{0,120})"
    r"|(.{1,40}?)(?:是|为)(?:正确的|对的|.{1,40}的.{1,20})",
    re.IGNORECASE,
)
DENIAL = re.compile(
    r"\b(?:not|no|never|neither|nor|none|cannot|wrong|incorrect|false|unless|except|instead|rather"
    r"|whether|if|but|however|although|though|would|should|than|isn|aren|wasn|doesn|don|didn|less"
    r"|more|twice|half|unlike|was thought|also|another|one of|part of|some"
    r"|said|claim(?:s|ed)|someone|somebody"
    r"|doubt|mistakes?|errors?|nobody|second|third|complement|subset|superset"
    r"|includ\w{1,3}|contain(?:s|ed)?|within|outside|exclud\w{2,3}|remov\w{2,3}|besides|others?"
    r"|nearly|almost|at (?:least|most)|up to|each|every|per)\b|n't\b"
    r"|不|没|非|否|错|但|假|若|如果|未|除了|而是|一半|比|至少|至多|最多",
    re.IGNORECASE,
)
POLITE = re.compile(
    r"\b(?:let me know|hope (?:this|that|it) helps|feel free|you're welcome|thanks?|happy to help"
    r"|any (?:other )?questions)\b|希望.{0,10}帮助",
    re.IGNORECASE,
)
SO = re.compile(
    r"\s?[,;，；]\s?(?:(?:so|therefore|thus|hence|which means|i\.e\.|namely|that is"
    r"|所以|因此|故|则|即)\s?[,，]?\s?"
    r"|(?=we (?:get|have|find|obtain)\b))",
    re.IGNORECASE,
)
BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
ASSIGNED = re.compile(r"(.{1,120}?[\s,;:])\$*[A-Za-z]\s?=\s?([^=]{1,80})", re.DOTALL)
RELATED = re.compile(
    r"\b(?:of|for|from|above|below|over|under|near|before|after|exceeds)\s*$", re.I
)
MATHS = re.compile(r"\$([^$\n]{1,200})\$")
APPOSED = re.compile(r"([A-Za-z' ]{1,80})[,=]\s{0,3}(\$*(?:[(\[{]|\\[{(\[]|\\begin).*)", re.DOTALL)
AFTER_COLON = re.compile(r"([^0-9:：={}]{1,60})[:：]\s?(.+)", re.DOTALL)
REASON = re.compile(
    r"\s?[,;，；]?\s?(?:\b(?:because|since|(?<!known )as(?! an? )|(?<!by )(?<!in )which|due to)\b"
    r"|因为|由于)",
    re.IGNORECASE,
)
NAME = re.compile(r"\$?(?:[A-Za-z]{1,16} ?){1,3}(?:\([^()]{1,8}\))?")
WORKING = re.compile(
    r"(?:[0-9\s.,+\-*/()^{}!%$∴√|−×÷]|\\(?:times|cdot|[dt]?frac|sqrt|left|right|div|pi)(?![a-zA-Z])"
    r"|(?<=[0-9)])\s?x\s?(?=[0-9(]))+"
)
# "Only x = 2 and x = 3 satisfy the equation".
HOLD = re.compile(
    r"(.{1,120}?) (?:satisf(?:y|ies)|solves?|works?|holds?|fits?)"
    r"(?: (?:it|(?:the|this|both) [a-z]{1,16}))?",
    re.IGNORECASE | re.DOTALL,
)
# A number, what is counted, and where: "720 ways to arrange the books".
PLACED = re.compile(
    r"(-?[$€£¥]?[0-9][0-9.,/ ]{0,20}(?: ?[^\s,;0-9]{1,20}){0,3}?)"
    r" (?:(?:in|to|for|on|at|from|among) ([^0-9]{1,80})|(?:are|is|were) (?:left|remaining|needed))"
)
# Lines that are one: a matrix, and a formula with the words in front of it.
DISPLAYED = re.compile(
    r"\$\$.{1,400}?\$\$|\\\[.{1,400}?\\\]|\\begin\{(\w{1,16})\}.{1,400}?\\end\{\1\}|\[\[.{1,400}?\]\]",
    re.DOTALL,
)
OPEN_LINE = re.compile(r"(?<=\b(?:is|be))\s?\n\s{0,8}|(?<=\bare)\s?\n\s{0,8}|(?<=为|是)\n\s{0,8}")
SUBJECT = re.compile(
    r"(?:(?:so|thus|therefore|hence),? )?the ([a-z]{1,20}) (?:is|was)\b", re.IGNORECASE
)
# A sentence that could be the whole answer: a few characters, or "It is ...".
BARE_VALUE = re.compile(
    r"[^\s=，。：\u4e00-\u9fff]{1,24}(?: [^\s=]{1,12})?[.!]?"
    r"|[\u4e00-\u9fff]{1,6}[。！]?"
    r"|(?:so |thus )?(?:it|that|this|the \w{1,20}) (?:is|was) .{1,40}",
    re.IGNORECASE,
)
NEXT_CLAUSE = re.compile(r"\b(?:and|while|whereas|but)\b|[,;]")
END = re.compile(r"[\s.。]+$")
GENERIC = frozenset(
    """value number name sum product length area volume amount color colour price cost title size
    height width speed time date year age capital quotient difference perimeter radius
    mean""".split()
)
"""Nouns for what any question asks."""
# "The planets are:" and one line for each.
HEADED = re.compile(
    r"([^\n:：]{1,100})[:：][ \t]{0,8}\n{1,3}"
    r"((?:[ \t]{0,3}(?:[-*•]|[0-9]{1,2}[.)])[ \t][^\n]{1,80}\n?){2,32})"
)
BARE_NUMBER = re.compile(r"-?[0-9.,]+%?")
PARENTHESIS = re.compile(r"([^()]{1,120}?)\s?\(([^()]{1,80})\)")
