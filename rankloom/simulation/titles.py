"""Word tables and grammars for the bazaar's titles, in English and Chinese.

Each category has styles; a style has a noun in both languages and words that mark it. Titles are put together from
brand, mark, noun, use and season (goods) or hook, noun and mark (videos), so that text carries taste without naming it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Category:
    """A branch of the catalogue: its names, whether it holds videos, and its styles as (English, Chinese) nouns."""

    english: str
    chinese: str
    video: bool
    styles: tuple[tuple[str, str], ...]


CATEGORIES: Final = (
    Category("Home cooking", "美食", True, (("noodle soup", "汤面"), ("street food", "小吃"), ("baking", "烘焙"), ("hot pot", "火锅"), ("vegan dinner", "素食晚餐"), ("breakfast", "早餐"))),
    Category("Fitness", "健身", True, (("yoga flow", "瑜伽"), ("home workout", "居家训练"), ("running plan", "跑步计划"), ("stretching", "拉伸"), ("weight training", "力量训练"), ("dance cardio", "健身操"))),
    Category("Pets", "萌宠", True, (("kitten", "小猫"), ("puppy", "小狗"), ("parrot", "鹦鹉"), ("aquarium", "鱼缸"), ("rabbit", "兔子"), ("hamster", "仓鼠"))),
    Category("Travel", "旅行", True, (("mountain hike", "登山徒步"), ("island trip", "海岛游"), ("night market", "夜市"), ("road trip", "自驾游"), ("old town walk", "古镇漫步"), ("camping", "露营"))),
    Category("Music", "音乐", True, (("guitar cover", "吉他弹唱"), ("piano piece", "钢琴曲"), ("folk song", "民谣"), ("drum solo", "架子鼓"), ("rap verse", "说唱"), ("choir", "合唱"))),
    Category("Gaming", "游戏", True, (("boss fight", "打boss"), ("speedrun", "速通"), ("strategy guide", "攻略"), ("card game", "卡牌"), ("racing game", "赛车游戏"), ("farm sim", "种田游戏"))),
    Category("Comedy", "搞笑", True, (("office sketch", "职场段子"), ("family prank", "家庭整蛊"), ("stand-up bit", "脱口秀"), ("dorm life", "宿舍日常"), ("dialect joke", "方言笑话"), ("pet comedy", "动物配音"))),
    Category("Crafts", "手工", True, (("pottery", "陶艺"), ("knitting", "编织"), ("wood carving", "木雕"), ("paper art", "剪纸"), ("model kit", "拼装模型"), ("calligraphy", "书法"))),
    Category("Skin care", "护肤", False, (("face serum", "精华液"), ("sun cream", "防晒霜"), ("sheet mask", "面膜"), ("cleanser", "洁面乳"), ("night cream", "晚霜"), ("eye cream", "眼霜"))),
    Category("Sportswear", "运动服饰", False, (("sweatshirt", "卫衣"), ("running shoes", "跑鞋"), ("leggings", "运动紧身裤"), ("rain jacket", "冲锋衣"), ("sports bra", "运动内衣"), ("training shorts", "训练短裤"))),
    Category("Kitchen", "厨房用品", False, (("cast iron pan", "铸铁锅"), ("chef knife", "菜刀"), ("rice cooker", "电饭煲"), ("tea set", "茶具"), ("storage box", "保鲜盒"), ("blender", "破壁机"))),
    Category("Snacks", "零食", False, (("mixed nuts", "混合坚果"), ("dried mango", "芒果干"), ("beef jerky", "牛肉干"), ("rice crackers", "米饼"), ("dark chocolate", "黑巧克力"), ("green tea", "绿茶"))),
    Category("Office wear", "通勤女装", False, (("silk blouse", "真丝衬衫"), ("pencil skirt", "半身裙"), ("wool coat", "羊毛大衣"), ("summer dress", "夏季连衣裙"), ("blazer", "西装外套"), ("loafers", "乐福鞋"))),
    Category("Electronics", "数码", False, (("earbuds", "无线耳机"), ("power bank", "充电宝"), ("phone case", "手机壳"), ("desk lamp", "台灯"), ("keyboard", "机械键盘"), ("smart watch", "智能手表"))),
    Category("Toys", "玩具", False, (("building blocks", "积木"), ("plush bear", "毛绒熊"), ("puzzle", "拼图"), ("toy train", "玩具火车"), ("board game", "桌游"), ("kite", "风筝"))),
    Category("Pet supplies", "宠物用品", False, (("cat litter", "猫砂"), ("dog food", "狗粮"), ("bird cage", "鸟笼"), ("fish tank filter", "鱼缸过滤器"), ("pet bed", "宠物窝"), ("chew toy", "磨牙玩具"))),
)  # fmt: skip
MARKS: Final = (
    ("cozy", "温馨"),
    ("minimal", "简约"),
    ("vintage", "复古"),
    ("colorful", "缤纷"),
    ("premium", "高端"),
    ("handmade", "手作"),
    ("budget", "平价"),
    ("classic", "经典"),
)
BRANDS: Final = (
    "Lumora",
    "Northpeak",
    "Qinghe",
    "Velta",
    "Mistral & Co",
    "云杉",
    "拾光",
    "Oakline",
    "Suyan",
    "小鹿",
    "Fernway",
    "Zenko",
    "柏悦",
    "Halden",
    "Taroo",
    "木禾",
)
USES: Final = (
    ("for home", "家用"),
    ("for beginners", "新手"),
    ("for travel", "旅行装"),
    ("gift set", "礼盒"),
    ("for kids", "儿童"),
    ("large size", "大号"),
    ("for men", "男士"),
    ("for women", "女士"),
)
SEASONS: Final = (("spring", "春季"), ("summer", "夏季"), ("autumn", "秋季"), ("winter", "冬季"))
HOOKS: Final = (
    ("I tried", "挑战"),
    ("How to make", "教你做"),
    ("My first", "第一次"),
    ("Day in the life:", "日常"),
    ("Watch this", "快看"),
    ("Five minutes of", "五分钟"),
    ("The truth about", "揭秘"),
    ("Beginner's", "零基础"),
)
COLORS: Final = (("black", "黑色"), ("white", "白色"), ("green", "绿色"), ("red", "红色"), ("blue", "蓝色"))
STUFFING: Final = (
    (
        "best seller hot sale 2026 free shipping cheap gift popular must buy",
        "爆款 热卖 包邮 网红 同款 特价 新款 推荐 必买 正品",
    ),
)


def goods_title(
    category: int, style: int, *, chinese: bool, brand: int, mark: int, use: int, season: int, color: int, stuffed: bool
) -> str:
    """A shop's title."""
    side = int(chinese)
    noun = CATEGORIES[category].styles[style][side]
    if chinese:
        title = f"{BRANDS[brand]} {SEASONS[season][1]}{MARKS[mark][1]}{COLORS[color][1]}{noun} {USES[use][1]}"
    else:
        title = f"{BRANDS[brand]} {MARKS[mark][0].capitalize()} {noun.title()}, {COLORS[color][0]}, {USES[use][0]}"
    return f"{title} {STUFFING[0][side]}" if stuffed else title


def video_title(category: int, style: int, *, chinese: bool, mark: int, hook: int, season: int, stuffed: bool) -> str:
    """A creator's caption."""
    side = int(chinese)
    noun = CATEGORIES[category].styles[style][side]
    if chinese:
        title = f"{HOOKS[hook][1]}{MARKS[mark][1]}{noun}｜{SEASONS[season][1]}{CATEGORIES[category].chinese}日记"
    else:
        title = f"{HOOKS[hook][0]} {MARKS[mark][0]} {noun} this {SEASONS[season][0]} #{CATEGORIES[category].english.lower().replace(' ', '')}"
    return f"{title} {STUFFING[0][side]}" if stuffed else title


def query_text(category: int, style: int, mark: int, *, chinese: bool, with_mark: bool) -> str:
    """What somebody types who wants this."""
    side = int(chinese)
    noun = CATEGORIES[category].styles[style][side]
    if not with_mark:
        return noun
    return f"{MARKS[mark][1]}{noun}" if chinese else f"{MARKS[mark][0]} {noun}"
