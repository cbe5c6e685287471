"""The types of keywords, and which type an attribute of the catalogue speaks of.

The eighteen are those of OneSearch's dictionary (arXiv 2509.03236, keyword enhancement). A shop keeps some of them, or adds
its own, in `keywords.types`; a keyword of a type that is not kept is dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

# names under which shops and feeds file an attribute, English and Chinese
_ATTRIBUTES: Final[dict[str, str]] = {
    "entity": "type product_type item_type 品类 类型 类别 产品类型 种类",
    "brand": "brand manufacturer maker label 品牌 厂商 制造商",
    "material": "material fabric ingredient ingredients composition 材质 材料 面料 成分 质地 里料材质",
    "style": "style look fit neckline 风格 款式 版型 领型",
    "function": "function feature features use usage benefit purpose 功能 功效 用途 特性",
    "location": "origin country region place city made_in 产地 地区 国家 原产地 城市",
    "audience": "audience gender age age_group sex target_audience 适用人群 适用对象 性别 人群 适用年龄",
    "color": "color colour colors shade 颜色 色系 色号",
    "scene": "scene occasion room setting 场景 场合 适用场景 适用空间",
    "specifications": "size capacity weight volume dimensions length width height spec specification specifications storage "
    "memory 尺码 尺寸 规格 容量 重量 净含量 内存 鞋码",
    "price": "price price_range 价格 价位",
    "model": "model model_number mpn sku part_number 型号 货号",
    "anchor": "anchor author creator artist streamer channel host seller 主播 作者 达人 博主 店铺",
    "series": "series collection line franchise 系列",
    "marketing": "promotion campaign badge 促销 活动 卖点",
    "season": "season 季节 适用季节",
    "pattern": "pattern print 图案 花纹 印花",
}
_KIND_OF: Final = {name: kind for kind, names in _ATTRIBUTES.items() for name in names.split()}


def kind_of_attribute(key: str, own: Mapping[str, str] | None = None) -> str | None:
    """The type that an attribute's values are of; None for an attribute that says nothing about words (`asin`, a URL).

    Args:
        key: as the catalogue spells it; case, spaces and hyphens do not matter.
        own: the shop's own `attribute -> type`, which wins.
    """
    name = re.sub(r"[\s\-]+", "_", unicodedata.normalize("NFKC", key).strip().lower())
    for given, kind in (own or {}).items():
        if re.sub(r"[\s\-]+", "_", unicodedata.normalize("NFKC", given).strip().lower()) == name:
            return kind
    return _KIND_OF.get(name)
