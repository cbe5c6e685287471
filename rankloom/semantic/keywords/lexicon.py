"""Words of the closed types, in English and Chinese: colours, materials, people, seasons and their like.

A catalogue seldom says in a column that `wool` is a material. These lists only lend a type: a word becomes a keyword when
the shop's own titles, columns or queries hold it often enough. Open types (entity, brand, model, series, anchor) have no list.
"""

from __future__ import annotations

import functools
from typing import Final

from rankloom.semantic.keywords.folding import fold

_WORDS: Final[dict[str, str]] = {
    "color": """black, white, red, green, blue, yellow, orange, purple, violet, pink, brown, grey, gray, beige, navy, ivory, cream,
        gold, golden, silver, rose gold, turquoise, teal, maroon, burgundy, khaki, coral, lavender, magenta, multicolor, transparent,
        黑色, 白色, 红色, 绿色, 蓝色, 黄色, 橙色, 紫色, 粉色, 粉红色, 棕色, 咖啡色, 灰色, 米色, 米白色, 藏青色, 金色, 银色, 玫瑰金, 酒红色, 卡其色,
        军绿色, 墨绿色, 天蓝色, 彩色, 透明, 奶白色, 杏色, 驼色""",
    "material": """cotton, linen, wool, cashmere, silk, leather, faux leather, suede, denim, polyester, nylon, spandex, velvet, fleece,
        canvas, satin, chiffon, lace, mesh, bamboo, wood, wooden, oak, walnut, pine, plastic, silicone, rubber, latex, glass, ceramic,
        porcelain, stainless steel, steel, cast iron, aluminum, aluminium, brass, copper, titanium, carbon fiber, marble, paper, acrylic,
        sterling silver, down, memory foam, 棉, 纯棉, 全棉, 棉麻, 亚麻, 羊毛, 羊绒, 真丝, 桑蚕丝, 雪纺, 蕾丝, 真皮, 牛皮, 头层牛皮, 皮革, 绒面, 麂皮,
        牛仔, 涤纶, 尼龙, 冰丝, 莫代尔, 法兰绒, 珊瑚绒, 灯芯绒, 帆布, 网纱, 竹, 竹纤维, 实木, 木质, 橡木, 胡桃木, 塑料, 硅胶, 橡胶, 乳胶, 玻璃, 陶瓷,
        骨瓷, 不锈钢, 铸铁, 铝合金, 黄铜, 纯铜, 钛合金, 碳纤维, 大理石, 亚克力, 纯银, 羽绒, 白鸭绒, 白鹅绒, 记忆棉""",
    "style": """vintage, retro, classic, minimalist, minimal, modern, casual, formal, elegant, bohemian, boho, rustic, industrial, gothic,
        punk, preppy, sporty, cute, kawaii, luxury, chic, slim fit, loose fit, oversized, skinny, high waist, cropped, v neck, crew neck,
        复古, 简约, 经典, 现代, 休闲, 正式, 优雅, 波西米亚, 田园, 工业风, 朋克, 学院风, 运动风, 可爱, 甜美, 轻奢, 欧式, 中式, 日式, 北欧, 美式, 法式, 韩版,
        日系, 欧美, 港风, 民族风, 文艺, 通勤, 修身, 宽松, 显瘦, 高腰, 短款, 长款, 中长款, v领, 圆领, 立领, 连帽, 直筒, 阔腿""",
    "function": """waterproof, water resistant, windproof, breathable, quick dry, moisturizing, hydrating, anti aging, whitening, brightening,
        exfoliating, anti dandruff, volumizing, cleansing, sunscreen, portable, foldable, rechargeable, wireless, bluetooth, adjustable,
        non stick, non slip, noise cancelling, shockproof, insulated, heated, cordless, washable, reusable, long lasting, oil free,
        防水, 防风, 透气, 速干, 保湿, 补水, 抗皱, 美白, 提亮, 去角质, 去屑, 控油, 祛痘, 清洁, 防晒, 便携, 折叠, 可折叠, 充电, 无线, 蓝牙, 可调节, 不粘, 防滑,
        降噪, 防摔, 保温, 加热, 可水洗, 持久, 加厚, 加绒, 保暖, 防盗, 防爆, 多功能, 静音, 减震, 耐磨, 遮瑕, 自动, 智能""",
    "location": """american, usa, made in usa, italian, italy, french, france, german, germany, japanese, japan, korean, korea, chinese, china,
        swiss, british, england, australian, indian, thai, turkish, moroccan, brazilian, hawaiian, scandinavian, 美国, 意大利, 法国, 德国, 日本,
        韩国, 中国, 瑞士, 英国, 澳洲, 澳大利亚, 新西兰, 泰国, 印度, 进口, 国产, 云南, 四川, 东北, 新疆, 西藏, 内蒙古, 景德镇, 宜兴, 义乌, 香港, 台湾""",
    "audience": """men, man, women, woman, ladies, girls, boys, kids, children, baby, babies, toddler, infant, newborn, teen, adult, seniors,
        unisex, couple, for men, for women, for kids, for beginners, for him, for her, pregnant women, students, dogs, cats, men's, women's, girl's,
        boy's, 男, 女, 男士, 女士, 男款, 女款, 男式, 女式, 男童, 女童, 儿童, 宝宝, 婴儿, 新生儿, 幼儿, 青少年, 学生, 成人, 老人, 中老年, 妈妈, 爸爸, 孕妇,
        情侣, 亲子, 新手, 大童, 小童, 男孩, 女孩""",
    "scene": """outdoor, indoor, travel, camping, hiking, office, party, wedding, birthday, kitchen, bathroom, bedroom, living room, garden,
        beach, gym, school, work, home, car, daily, picnic, dorm, 户外, 室内, 旅行, 旅游, 露营, 登山, 办公室, 办公, 派对, 婚礼, 结婚, 生日, 厨房, 浴室,
        卫生间, 卧室, 客厅, 阳台, 花园, 沙滩, 健身房, 学校, 家用, 车载, 日常, 商务, 宿舍, 餐厅, 婚庆, 出差""",
    "season": """spring, summer, autumn, fall, winter, all season, christmas, halloween, valentine's day, easter, 春季, 夏季, 秋季, 冬季, 春夏, 秋冬,
        春秋, 春款, 夏款, 秋款, 冬款, 春装, 夏装, 秋装, 冬装, 四季, 春天, 夏天, 秋天, 冬天, 圣诞, 春节, 新年, 中秋, 端午, 情人节, 七夕""",
    "pattern": """striped, stripe, plaid, checkered, floral, polka dot, leopard, camouflage, camo, geometric, paisley, tie dye, embroidered,
        printed, solid color, houndstooth, zebra, animal print, 条纹, 格子, 格纹, 碎花, 花卉, 印花, 波点, 圆点, 豹纹, 迷彩, 几何, 扎染, 刺绣, 绣花, 纯色,
        千鸟格, 斑马纹, 卡通, 拼接, 拼色, 镂空""",
    "marketing": """best seller, bestseller, hot sale, hot selling, new arrival, free shipping, sale, clearance, discount, cheap, popular, must buy,
        must have, limited edition, gift, gift set, deal, promotion, on sale, top rated, high quality, premium quality, brand new, 100% authentic,
        authentic, genuine, official, free gift, fast delivery, low price, 爆款, 热卖, 热销, 包邮, 网红, 同款, 明星同款, 特价, 新款, 推荐, 必买, 正品,
        专柜正品, 限量, 限量版, 清仓, 促销, 秒杀, 直降, 打折, 优惠, 折扣, 新品, 上新, 厂家直销, 官方, 旗舰店, 买一送一, 送礼, 礼物, 高品质, 潮流, 时尚, 抖音,
        人气, 爆品, 特惠, 亏本, 抢购""",
}


@functools.cache
def lexicon() -> dict[str, str]:
    """Folded word -> type. A word of two lists is of the first."""
    found: dict[str, str] = {}
    for kind, words in _WORDS.items():
        for word in words.split(","):
            found.setdefault(fold(word).text, kind)
    return found


STOP_WORDS: Final = frozenset(
    """a an the of in on at to by with without from and or for is are as it its this that these those be your you my our we i
    me no not so if up out off per plus via vs etc all any both more most other some such than then too very can will just
    de la le les du des et el y oz ozs ounce ounces fl fluid ml mg gram grams kg lb lbs cm mm inch inches ft pack packs pk pcs piece pieces ct count
    的 了 和 与 及 或 在 是 有 为 之 也 就 都 而 等 款 个 只 件 条 双 张 组 片""".split()  # noqa: SIM905
)
