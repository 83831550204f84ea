"""Languages by code, with their English names, and the directions that pairs of codes name."""

import re
from dataclasses import dataclass

from ft.errors import UserError, nearest

# ISO 639-1 and, where there is one, 639-3 (FLORES, Tatoeba): the same language by either code
_NAMED = """
aa/aar Afar; ab/abk Abkhaz; af/afr Afrikaans; ak/aka Akan; am/amh Amharic; an/arg Aragonese; ar/ara Arabic;
as/asm Assamese; av/ava Avar; ay/aym Aymara; az/aze Azerbaijani; ba/bak Bashkir; be/bel Belarusian;
bg/bul Bulgarian; bi/bis Bislama; bm/bam Bambara; bn/ben Bengali; bo/bod Tibetan; br/bre Breton;
bs/bos Bosnian; ca/cat Catalan; ce/che Chechen; ch/cha Chamorro; co/cos Corsican; cr/cre Cree; cs/ces Czech;
cu/chu Church Slavonic; cv/chv Chuvash; cy/cym Welsh; da/dan Danish; de/deu German; dv/div Dhivehi;
dz/dzo Dzongkha; ee/ewe Ewe; el/ell Greek; en/eng English; eo/epo Esperanto; es/spa Spanish; et/est Estonian;
eu/eus Basque; fa/fas Persian; ff/ful Fulah; fi/fin Finnish; fj/fij Fijian; fo/fao Faroese; fr/fra French;
fy/fry West Frisian; ga/gle Irish; gd/gla Scottish Gaelic; gl/glg Galician; gn/grn Guarani; gu/guj Gujarati;
gv/glv Manx; ha/hau Hausa; he/heb Hebrew; hi/hin Hindi; ho/hmo Hiri Motu; hr/hrv Croatian;
ht/hat Haitian Creole; hu/hun Hungarian; hy/hye Armenian; hz/her Herero; ia/ina Interlingua; id/ind Indonesian;
ie/ile Interlingue; ig/ibo Igbo; ii/iii Sichuan Yi; ik/ipk Inupiaq; io/ido Ido; is/isl Icelandic;
it/ita Italian; iu/iku Inuktitut; ja/jpn Japanese; jv/jav Javanese; ka/kat Georgian; kg/kon Kongo;
ki/kik Kikuyu; kj/kua Kuanyama; kk/kaz Kazakh; kl/kal Greenlandic; km/khm Khmer; kn/kan Kannada;
ko/kor Korean; kr/kau Kanuri; ks/kas Kashmiri; ku/kur Kurdish; kv/kom Komi; kw/cor Cornish; ky/kir Kyrgyz;
la/lat Latin; lb/ltz Luxembourgish; lg/lug Luganda; li/lim Limburgish; ln/lin Lingala; lo/lao Lao;
lt/lit Lithuanian; lu/lub Luba-Katanga; lv/lav Latvian; mg/mlg Malagasy; mh/mah Marshallese; mi/mri Maori;
mk/mkd Macedonian; ml/mal Malayalam; mn/mon Mongolian; mr/mar Marathi; ms/msa Malay; mt/mlt Maltese;
my/mya Burmese; na/nau Nauruan; nb/nob Norwegian Bokmål; nd/nde North Ndebele; ne/nep Nepali; ng/ndo Ndonga;
nl/nld Dutch; nn/nno Norwegian Nynorsk; no/nor Norwegian; nr/nbl South Ndebele; nv/nav Navajo;
ny/nya Chichewa; oc/oci Occitan; oj/oji Ojibwe; om/orm Oromo; or/ori Odia; os/oss Ossetian; pa/pan Punjabi;
pi/pli Pali; pl/pol Polish; ps/pus Pashto; pt/por Portuguese; qu/que Quechua; rm/roh Romansh; rn/run Kirundi;
ro/ron Romanian; ru/rus Russian; rw/kin Kinyarwanda; sa/san Sanskrit; sc/srd Sardinian; sd/snd Sindhi;
se/sme Northern Sami; sg/sag Sango; sh/hbs Serbo-Croatian; si/sin Sinhala; sk/slk Slovak; sl/slv Slovenian;
sm/smo Samoan; sn/sna Shona; so/som Somali; sq/sqi Albanian; sr/srp Serbian; ss/ssw Swati; st/sot Sesotho;
su/sun Sundanese; sv/swe Swedish; sw/swa Swahili; ta/tam Tamil; te/tel Telugu; tg/tgk Tajik; th/tha Thai;
ti/tir Tigrinya; tk/tuk Turkmen; tl/tgl Tagalog; tn/tsn Tswana; to/ton Tongan; tr/tur Turkish; ts/tso Tsonga;
tt/tat Tatar; tw/twi Twi; ty/tah Tahitian; ug/uig Uyghur; uk/ukr Ukrainian; ur/urd Urdu; uz/uzb Uzbek;
ve/ven Venda; vi/vie Vietnamese; vo/vol Volapük; wa/wln Walloon; wo/wol Wolof; xh/xho Xhosa; yi/yid Yiddish;
yo/yor Yoruba; za/zha Zhuang; zh/zho Chinese; zu/zul Zulu; ace Acehnese; acm Mesopotamian Arabic;
aeb Tunisian Arabic; als Tosk Albanian; apc Levantine Arabic; arb Standard Arabic; ars Najdi Arabic;
ary Moroccan Arabic; arz Egyptian Arabic; asm Assamese; ast Asturian; awa Awadhi; ayr Central Aymara;
azb South Azerbaijani; azj North Azerbaijani; ban Balinese; bar Bavarian; bem Bemba; ber Berber; bho Bhojpuri;
bjn Banjar; bug Buginese; ceb Cebuano; chr Cherokee; ckb Central Kurdish; cmn Mandarin Chinese;
crh Crimean Tatar; dik Southwestern Dinka; doi Dogri; dsb Lower Sorbian; dyu Dyula; ekk Standard Estonian;
fil Filipino; fon Fon; frp Arpitan; fur Friulian; fuv Nigerian Fulfulde; gaz West Central Oromo;
gom Goan Konkani; grc Ancient Greek; gsw Swiss German; haw Hawaiian; hil Hiligaynon; hmn Hmong;
hne Chhattisgarhi; hsb Upper Sorbian; ilo Ilocano; jbo Lojban; kab Kabyle; kac Jingpho; kam Kamba;
kbp Kabiye; kea Kabuverdianu; khk Halh Mongolian; kmb Kimbundu; kmr Northern Kurdish; lad Ladino; lij Ligurian;
lmo Lombard; ltg Latgalian; lua Luba-Kasai; luo Luo; lus Mizo; lvs Standard Latvian; lzh Classical Chinese;
mag Magahi; mai Maithili; mhr Meadow Mari; min Minangkabau; mni Meitei; mos Mossi; nan Min Nan Chinese;
nap Neapolitan; nds Low German; npi Nepali; nso Northern Sotho; nus Nuer; ory Odia; pag Pangasinan;
pap Papiamento; pbt Southern Pashto; pcm Nigerian Pidgin; pes Western Persian; plt Plateau Malagasy;
pms Piedmontese; prs Dari; quy Ayacucho Quechua; rom Romani; sah Yakut; sat Santali; scn Sicilian; sco Scots;
shn Shan; swh Swahili; szl Silesian; taq Tamasheq; tet Tetum; tpi Tok Pisin; tum Tumbuka; tzm Central Atlas Tamazight;
udm Udmurt; umb Umbundu; uzn Northern Uzbek; vec Venetian; war Waray; wuu Wu Chinese; ydd Eastern Yiddish;
yue Cantonese; zsm Standard Malay
"""

_VARIANTS = {
    "zh_hans": "Simplified Chinese",
    "zh_cn": "Simplified Chinese",
    "zh_hant": "Traditional Chinese",
    "zh_tw": "Traditional Chinese (Taiwan)",
    "zh_hk": "Traditional Chinese (Hong Kong)",
    "pt_br": "Brazilian Portuguese",
    "pt_pt": "European Portuguese",
    "en_gb": "British English",
    "en_us": "American English",
    "fr_ca": "Canadian French",
    "es_419": "Latin American Spanish",
    "es_mx": "Mexican Spanish",
    "nl_be": "Flemish",
}
_SCRIPTS = """
Arab Arabic; Armn Armenian; Beng Bengali; Cyrl Cyrillic; Deva Devanagari; Ethi Ethiopic; Geor Georgian;
Grek Greek; Gujr Gujarati; Guru Gurmukhi; Hang Hangul; Hans simplified; Hant traditional; Hebr Hebrew;
Jpan Japanese; Khmr Khmer; Knda Kannada; Laoo Lao; Latn Latin; Mlym Malayalam; Mong Mongolian; Mtei Meitei;
Mymr Burmese; Olck Ol Chiki; Orya Odia; Sinh Sinhala; Taml Tamil; Telu Telugu; Tfng Tifinagh; Thai Thai;
Tibt Tibetan
"""
_REGIONS = """
AE UAE; AR Argentina; AT Austria; AU Australia; BE Belgium; BO Bolivia; BR Brazil; CA Canada; CH Switzerland;
CL Chile; CN China; CO Colombia; DE Germany; DZ Algeria; EG Egypt; ES Spain; FI Finland; FR France;
GB United Kingdom; HK Hong Kong; IE Ireland; IN India; IQ Iraq; IR Iran; IT Italy; JP Japan; KE Kenya;
KR South Korea; MA Morocco; MD Moldova; MX Mexico; NL Netherlands; NZ New Zealand; PE Peru; PH Philippines;
PK Pakistan; PL Poland; PT Portugal; RO Romania; RU Russia; SA Saudi Arabia; SE Sweden; SG Singapore;
SY Syria; TN Tunisia; TR Turkey; TW Taiwan; TZ Tanzania; UA Ukraine; US United States; UY Uruguay;
VE Venezuela; VN Vietnam; ZA South Africa
"""


# written in several scripts, so that the name tells which; elsewhere Latn in eng_Latn says nothing
_SCRIPTED = """
ace ar az azb azj ber bjn bn bo bs crh ha hi jv kab kas kk kr ks ku ky min mn mni ms my pa sa sat sd sh sr su
taq tg tk tt tzm ug ur uz uzn yue zh
"""


def _table(text: str) -> dict[str, str]:
    entries = (entry.strip().split(" ", 1) for entry in text.replace("\n", " ").split(";"))
    return {code.lower(): name for codes, name in entries for code in codes.split("/")}


NAMES = _table(_NAMED)
_SHORT = {  # eng: en
    codes.split("/")[1]: codes.split("/")[0]
    for codes in re.findall(r"\b[a-z]{2}/[a-z]{3}\b", _NAMED)
}
_PARTS = _table(_SCRIPTS) | _table(_REGIONS)
_CODE = re.compile(r"([A-Za-z]{2,3})((?:_[A-Za-z0-9]{2,4})*)(?:=([^{}<>\n]+))?")
_HOW = (
    "Write SOURCE-TARGET with codes of ISO 639, such as en, fr, ja, deu, and a script or region behind "
    "an underscore: en-de, en-pt_BR, zh_Hans-eng_Latn; a language that is not known here is named "
    "with =: en-tlh=Klingon"
)


@dataclass(frozen=True)
class Language:
    """A language, perhaps as one script or region has it."""

    code: str  # as the user wrote it, without the name: pt_BR
    name: str  # in English: Brazilian Portuguese

    @property
    def base(self) -> str:
        """Its ISO 639 code without script or region, of two letters where there is one: pt, of por_Latn."""
        return base_of(self.code)

    @property
    def codes(self) -> list[str]:
        """Its ISO 639 codes of two and of three letters, as suffixes of files have them."""
        long = {short: code for code, short in _SHORT.items()}
        return [self.base, long[self.base]] if self.base in long else [self.base]

    def is_called(self, name: str, *, exactly: bool = False) -> bool:
        """Whether a column, a suffix or an ``xml:lang`` of that name holds this language.

        Case, ``-`` for ``_`` and the length of the ISO code do not count, nor what the name says
        more; what this code says more must be there, but for the base alone. ``exactly``: no more.
        """
        mine, theirs = _parts(self.code), _parts(name)
        if mine[0] != theirs[0]:
            return False
        return mine[1] == theirs[1] if exactly else mine[1] <= theirs[1] or not theirs[1]


def pair(text: str) -> tuple[Language, Language]:
    """Source and target that ``en-de`` names. Raises ``UserError`` for what is not such a pair."""
    parts = text.strip().split("-")
    joined = [parts[0], "-".join(parts[1:])] if "=" in "".join(parts[1:2]) else parts
    if len(joined) != 2 or not all(joined):
        raise UserError(f"language pair {text!r}: it is not two codes with a dash between. {_HOW}")
    source, target = (_language(code, text) for code in joined)
    if _parts(source.code) == _parts(target.code):
        raise UserError(f"language pair {text!r}: source and target are the same language")
    return source, target


def base_of(code: str) -> str:
    """``Language.base`` of a code."""
    base = re.split("[_-]", code.strip().lower(), maxsplit=1)[0]
    return _SHORT.get(base, base)


def known(code: str) -> bool:
    """Whether this is a code of a language that has a name here: a suffix such as ``.de`` may be one."""
    return base_of(code) in NAMES and bool(_CODE.fullmatch(code.replace("-", "_")))


def _parts(name: str) -> tuple[str, frozenset[str]]:
    base, *more = name.strip().lower().replace("-", "_").split("_")
    return base_of(base), frozenset(more)


def _language(code: str, text: str) -> Language:
    found = _CODE.fullmatch(code.strip())
    if not found:
        raise UserError(f"language pair {text!r}: {code!r} is not the code of a language. {_HOW}")
    base, more, named = found.group(1).lower(), found.group(2), found.group(3)
    plain = base + more
    if named:
        return Language(plain, named.strip())
    if base not in NAMES:
        raise UserError(
            f"language pair {text!r}: {base!r} is not a language that is known here.{nearest(base, NAMES)} {_HOW}"
        )
    short = _SHORT.get(base, base)
    if variant := _VARIANTS.get((short + more).lower()):
        return Language(plain, variant)
    parts = [part for part in more.lower().split("_") if part]
    for part in parts:
        if part not in _PARTS:
            raise UserError(
                f"language pair {text!r}: the script or region {part!r} of {code!r} is not known here; "
                f"name the language yourself: {plain}=NAME"
            )
    told = [part for part in parts if len(part) != 4 or short in _SCRIPTED.split()]
    shown = ", ".join(_PARTS[part] for part in told)
    return Language(plain, f"{NAMES[base]} ({shown})" if shown else NAMES[base])
