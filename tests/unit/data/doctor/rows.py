"""Own rows for the rules that public data gave no hits for: at least twenty that a rule has to find, and twenty beside them
that it has to leave alone. docs/data-doctor.md gives the counts.
"""

from __future__ import annotations

# What a sentence may be about; characters and numbers are put into them.
CARRIERS = (
    "会議は{}の予定で、資料は前日までに配ります。", "お問い合わせは{}までお願いします。", "{}については、担当から連絡します。",
    "申込書には{}と書いてください。", "控えには{}とありました。", "封筒の裏に{}と印字されています。", "先週の記録では{}でした。",
    "名簿の三行目は{}です。", "こちらが{}になります。", "画面の右下に{}と出ます。", "見本では{}と示しています。",
    "変更後は{}を使います。", "念のため{}も控えておきました。", "ラベルには{}と書きました。", "返信には{}を添えます。",
    "次の行は{}から始まります。", "確認したところ{}でした。", "書類の番号の隣が{}です。", "最後に{}と署名しました。", "一覧の先頭は{}です。",
)  # fmt: skip
PLAIN = (
    "東京は日本の首都です。", "パンは小麦粉と水と塩で作ります。", "富士山の高さは3776メートルです。", "桜は春に咲きます。",
    "駅から歩いて5分です。", "会員は1,200人です。", "2024年4月1日に始まりました。", "合計は123456円です。", "番号は1番から20番までです。",
    "湿度は45%でした。", "JavaScriptとPythonを比べます。", "Café au laitを二つください。", "①と②を選びます。", "㈱青空商店に頼みました。",
    "髙橋さんと﨑山さんが来ました。", "「はい」と答えました。", "値は3.14です。", "URLはhttps://example.com/aです。", "A&Bと書きます。", "1<2かつ3>2です。",
)  # fmt: skip


def carried(items: list[str]) -> list[str]:
    """Each of the items (again from the first where they are few) in a sentence."""
    return [carrier.format(items[index % len(items)]) for index, carrier in enumerate(CARRIERS)]


_TOKENS = [
    "<|im_end|>", "<|im_start|>user", "<|eot_id|>", "<|endoftext|>", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<s>", "<start_of_turn>",
    "<end_of_turn>", "<｜User｜>", "<|assistant|>", "<|system|>", "GPT4 Correct User:", "<|start_header_id|>", "<</SYS>>", "<|user|>",
    "<|return|>", "GPT4 Correct Assistant:",
]  # fmt: skip
_NO_TOKENS = [
    "<b>太字</b>", "<a href=x>", "[1]", "[注]", "a < b | c > d", "|表|の|行|", "### 見出し", "<<強調>>", "S」と「s", "{s}", "<未定>",
    "[INSTALL]", "<|>", "<||>", "</p>", "「応答:」", "# 応答", "User様", "assistant役", "<br>",
]  # fmt: skip
_ENGLISH = [
    "The capital of Japan is Tokyo, which is the largest city in the country.",
    "You should try to drink more water and get enough sleep every day.",
    "I think that it is better to ask the teacher about this problem.",
    "It was the best of times and it was the worst of times for them.",
    "Bread is made from flour, water and salt, and it is baked in an oven.",
    "This is a list of the things that you will need for the trip.",
    "We are happy to help you with your order at any time of the day.",
    "He went to the market and bought some apples for his mother.",
    "The answer to your question depends on what you have in mind.",
    "They have been working on this project for more than three years.",
    "There is no single way to learn a language, but practice will help.",
    "A good rule is to keep the explanation as short as you can.",
    "The meeting has been moved to Friday because of the heavy rain.",
    "If you have any questions, please let us know by the end of the week.",
    "She said that the book was on the table in the next room.",
    "In the morning the birds sing and the air is fresh and cool.",
    "The first step is to read the instructions that came with it.",
    "When the water boils, add the noodles and cook for three minutes.",
    "It is not clear who wrote the letter or when it was sent to him.",
    "My favorite season is autumn because the leaves turn red and gold.",
]
_NOT_ENGLISH = [
    "Wonderwall, Champagne Supernova, Don't Look Back in Anger, Live Forever, Some Might Say, Supersonic",
    "Pfizer, Moderna, AstraZeneca, Johnson & Johnson, Novavax, Sinovac, Bharat Biotech, CureVac, Sanofi",
    "New York, Los Angeles, Chicago, Houston, Phoenix, Philadelphia, San Antonio, San Diego, Dallas",
    "Led Zeppelin, Deep Purple, Black Sabbath, Uriah Heep, Judas Priest, Iron Maiden, Motorhead",
    "HTML, CSS, JavaScript, TypeScript, React, Vue, Angular, Svelte, Node, Deno, Bun",
    "Apple Inc.", "Yes", "OK", "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune", "C D E F G A B", "GDP, GNP, CPI, PPI",
    "東京タワーはTokyo Towerとも書きます。", "Helloは英語のあいさつで、こんにちはにあたります。",
    "2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47", "3.14159265", "NaCl, HCl, H2SO4, NaOH, KOH",
    "Hamlet, Macbeth, Othello, King Lear, Romeo and Juliet, Julius Caesar, Coriolanus, Cymbeline",
    "Toyota Honda Nissan Mazda Subaru Suzuki Mitsubishi Daihatsu Isuzu Hino", "kg, m, s, A, K, mol, cd", "Ave Maria",
]  # fmt: skip
_CHINESE = [
    "东京是日本的首都，人口很多。", "这个问题很重要，我们要认真考虑。", "请问您需要什么帮助吗？", "他们在学校里学习汉语。", "我们应该保护环境，节约用水。",
    "这是一个很好的建议，谢谢您。", "中国的历史非常悠久。我们都知道这个。", "首先把水烧开，然后放入面条。", "这里的风景很漂亮，我也很喜欢。", "您可以通过网站预订房间。",
    "为了健康，我们应该多运动。", "我是學生，他是老師，你也是嗎？", "這是我們的，也是他們的。", "他說的話你都聽到了嗎？這是真的。", "从这里到车站需要十分钟。",
    "对不起，我没有听懂您的问题。", "机器学习是人工智能的一个分支。", "请打开电脑，然后输入密码。", "红色的苹果和绿色的苹果都好吃。", "谢谢你们的帮助，我们很高兴。",
]  # fmt: skip
_NOT_CHINESE = [
    "経済的、社会的、文化的、政治的な影響", "東京都千代田区霞が関一丁目", "東京特許許可局許可局長", "国際連合教育科学文化機関", "高速増殖炉原型炉",
    "第二次世界大戦中、連合国軍最高司令官", "子曰、学而時習之、不亦説乎。", "温故知新、切磋琢磨、一期一会、四面楚歌", "独立行政法人日本学生支援機構",
    "在日米軍基地、在日外国人、在宅勤務者", "都市計画、都道府県、首都高速道路公団", "我田引水、唯我独尊、自我同一性", "着物、着付、着席、到着、着眼点",
    "也寸志、達也、哲也、拓也、和也、直也", "就職活動、就業規則、就任式", "明治大正昭和平成令和、元号一覧表", "春夏秋冬、東西南北、前後左右、上下関係",
    "被害者、被告人、被災地、被保険者", "給与所得控除、配偶者控除、扶養控除", "非常勤講師、特別研究員、客員教授",
]  # fmt: skip
_FOREIGN = [
    "안녕하세요", "감사합니다", "서울", "한국", "사랑", "Привет", "Спасибо", "Москва", "Россия", "да", "مرحبا", "شكرا", "القاهرة", "سلام", "كتاب",
    "สวัสดี", "ขอบคุณ", "กรุงเทพ", "ไทย", "อาหาร",
]  # fmt: skip
_NOT_FOREIGN = [
    "(´Д｀)", "(・∀・)", "(^ω^)", "α線とβ線", "ΔxとΣ", "Ж", "д", "ñ", "Übermensch", "Ǖ", "Ångström", "façade", "ℓ", "µm", "π", "θ", "λ", "Ω", "№", "♪",
]  # fmt: skip
_TRADITIONAL = list("說內絕值吳彥產頹囪啥啟歲稅脫鄉啪嗨嗯嘀嘟")
_NOT_TRADITIONAL = [
    "嚙",
    "鹼",
    "繫",
    "髙",
    "﨑",
    "學",
    "國",
    "體",
    "臺",
    "灣",
    "龍",
    "齋",
    "邊",
    "澤",
    "廣",
    "眞",
    "圓",
    "氣",
    "櫻",
    "驛",
]
_CARDS = [
    "4111111111111111", "4111-1111-1111-1111", "4111 1111 1111 1111", "5555555555554444", "5555-5555-5555-4444", "378282246310005",
    "3782-822463-10005", "30569309025904", "3056-9309-0259-04", "6011111111111117", "6011-1111-1111-1117", "3530111333300000",
    "3530-1113-3330-0000", "4012888888881881", "4012-8888-8888-1881", "5105105105105100", "371449635398431", "38520000023237",
    "６０１１－０００９－９０１３－９４２４", "3566002020360505",
]  # fmt: skip
_NOT_CARDS = [
    "4111111111111112", "4111-1111-1111-1113", "1234567890123456", "0000000000000000", "4444444444444444", "9999-9999-9999-9999",
    "20240401120000", "2024-0401-1200-00", "123456789012", "31415926535897932", "5555555555554445", "378282246310006", "30569309025905",
    "6011111111111118", "3530111333300001", "90-1234-5678-9012", "1111-2222-3333-4444", "0120-123-456", "978-4-00-310101-8", "49-1234-5678",
]  # fmt: skip
_MOBILES = [
    "090-1234-5678", "080-1234-5678", "070-1234-5678", "050-1234-5678", "09012345678", "08012345678", "07098765432", "05011112222",
    "090(1234)5678", "080（1234）5678", "０９０－１２３４－５６７８", "０８０１２３４５６７８", "090‐1234‐5678", "090−1234−5678", "080 1234 5678",
    "070 2222 3333", "090–9999–0001", "０７０（１２３４）５６７８", "050-3333-4444", "080-0000-1111",
]  # fmt: skip
_NOT_MOBILES = [
    "190-1234-5678", "090-123-4567", "0901234567", "090123456789", "2090-1234-5678", "030-1234-5678", "090-1234", "90-1234-5678", "09-0123-4567",
    "090,123,456", "0.9012345678", "080-12345-678", "100-090-1234-5678", "ー090ー", "080000", "0801", "2080年", "070円", "050%", "60-90-1234",
]  # fmt: skip
_PHONES = [
    "03-1234-5678", "06-1234-5678", "045-123-4567", "0120-123-456", "0422-12-3456", "０３－１２３４－５６７８", "03(1234)5678", "(03)1234-5678",
    "045(123)4567", "0800-123-4567", "0570-123-456", "011-222-3333", "092-111-2222", "04-2222-3333", "(045)123-4567", "06（1234）5678",
    "電話 0312345678", "TEL:0451234567", "連絡先は0611112222", "０４５－１２３－４５６７",
]  # fmt: skip
_NOT_PHONES = [
    "0312345678", "1-2-3", "2024-04-01", "12-34-56", "003-1234-5678", "03-1234-56789", "045-12-34567", "0-1234-5678", "03-12-345", "10-20-30",
    "978-4-00-310101", "(1)2-3", "第03-12号", "0.3-1234", "午前03-04時", "A03-1", "2023-2024", "100-0001", "3-1234-5678", "電話は09時から",
]  # fmt: skip
_POSTCODES = [
    "〒100-0001", "〒1000001", "〒 150-0002", "〒530-0001", "〒９８０－０００１", "〒060-0001", "〒900－0001", "〒810‐0001", "〒4600001", "〒7300001",
    "〒１６００００１", "〒 2310001", "〒260-0001", "〒330-0001", "〒600-8001", "〒650-0001", "〒700−0001", "〒850-0001", "〒380-0001", "〒020-0001",
]  # fmt: skip
_NOT_POSTCODES = [
    "100-0001", "1000001", "〒マーク", "〒100", "〒10-0001", "〒100-00012", "郵便番号", "〒は記号です", "123-4567円", "T100-0001", "〒-", "〒abc", "〒1",
    "〒12-345", "〒1234-567", "〒00", "100-0001号", "千百", "〒東京", "〒12345678",
]  # fmt: skip
_BANKS = [
    "普通1234567", "普通 1234567", "当座 7654321", "口座番号は1234567", "口座番号:1234567", "口座 1234567", "普通預金 1234567", "普通　１２３４５６７",
    "当座：1234567", "口座番号 7654321", "普通口座 1111111", "(普通)2222222", "普通・3333333", "口座番号＝4444444", "当座預金5555555", "普通口座は6666666",
    "口座番号が7777777", "普通/8888888", "口座番号 ９９９９９９９", "当座 0000001",
]  # fmt: skip
_NOT_BANKS = [
    "1234567", "普通123456", "普通12345678", "普通の日に1234567人が来ました", "会員番号1234567", "普通列車で7分", "口座を2つ", "当座の費用は1,234円", "口座開設数",
    "普通", "当座", "口座番号", "普通は8時", "普通車123台", "口座の残高は98765円", "普通郵便84円", "当座しのぎ", "注文番号7654321", "普通科1年", "口座数12345",
]  # fmt: skip
_SECRETS = [
    "sk-Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8", "sk-proj-Ab1Cd2Ef3Gh4Ij5Kl6Mn7", "AKIAABCDEFGHIJKLMN12", "AKIA1234567890ABCDEF", "ghp_" + "a1B2" * 9,
    "github_pat_11ABCDEFG0abcdefghijkl", "hf_abcdefghij0123456789", "hf_" + "A1b2C3d4" * 4, "AIza" + "Sy0123456789abcdefghijklmnopqrstuvw"[:35],
    "xoxb-123456789012-abcdefABCDEF12", "xoxp-1234567890-1234567890-abc", "-----BEGIN PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----", "-----BEGIN EC PRIVATE KEY-----", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc123DEF456ghi",
    "sk-ant-api03-Ab1Cd2Ef3Gh4Ij5K", "ghp_" + "Z9y8" * 9, "AKIAZZZZZZZZZZZZZZZ9", "hf_ZyXwVuTsRq9876543210",
]  # fmt: skip
_NOT_SECRETS = [
    "sk-with-cotton-and-linen-fabric", "sk-short1", "risk-taking-and-risk-management", "sk-2021-new-cotton-fabric-sale", "AKIA", "AKIA12", "ghp_x",
    "hf_hub_download", "hf_token", "AIzawa", "xoxo", "PUBLIC KEY", "-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----", "eyJ", "task-force-1234567890",
    "sk-learn-and-other-libraries-1", "desk-lamp-with-led-light-2020", "github_pat", "https://example.com/sk-with-long-title-of-page",
]  # fmt: skip


def _my_numbers() -> tuple[list[str], list[str]]:
    """Numbers made with the rule of the law's ordinance by hand (Q_n = 6 5 4 3 2 7 6 5 4 3 2), and such with another digit."""
    right, wrong = [], []
    for index in range(20):
        digits = f"{(index * 98765432101 + 12345678901) % 10**11:011d}"
        total = sum(
            int(digit) * weight for digit, weight in zip(digits, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2), strict=True)
        )
        check = 11 - total % 11 if total % 11 > 1 else 0
        whole, other = f"{digits}{check}", f"{digits}{(check + 1) % 10}"
        if index % 3 == 1:
            whole = f"{whole[:4]}-{whole[4:8]}-{whole[8:]}"
        right.append(f"マイナンバー{whole}")
        wrong.append(f"マイナンバー{other}" if index % 2 else f"番号{whole}")
    return right, wrong


def _twice(text: str) -> str:
    """UTF-8 that was read as CP932 two times, which loses bytes."""
    return text.encode().decode("cp932", "ignore").encode().decode("cp932", "ignore")


# Broken texts whose bytes prove nothing: rare kanji, half-width kana that no word is spelt with, odd characters.
_LIKELY = [
    *(_twice(carrier.format("本社")) for carrier in CARRIERS[:10]),
    *(f"{year}年{year % 12 + 1}月{year % 20 + 10}日".encode().decode("latin-1") for year in range(1990, 1995)),
    *(
        f"{year}年{year % 12 + 1}月{year % 20 + 10}日".encode().decode("cp1252", "replace")
        for year in range(1995, 2000)
    ),
    "冬・春・夏".encode().decode("cp932", "ignore"),
]
# Real half-width kana, accents, signs, drawings, names and rare kanji.
_NOT_LIKELY = [
    "ﾌﾘｺﾐ ｶ)ｱｵｿﾞﾗｼﾖｳﾃﾝ", "霞ｹ関、三ｹ月、八ｶ所、山ﾉ内、三ﾂ星", "ﾏﾝｼｮﾝ1LDK･ﾊﾞｽ･ﾄｲﾚ別､ｴｱｺﾝ付", "ｺｰﾋｰ､ﾃｨｰ､ｼﾞｭｰｽ", "ﾌｧｲﾙ､ﾌｫﾙﾀﾞｰ､ｳｨﾝﾄﾞｳ",
    "ﾁｪｯｸｱｳﾄは10時です｡", "ｱ･ｲ･ｳ･ｴ･ｵの順", "(ﾟ∀ﾟ)", "(ﾟДﾟ)ﾊｧ?", "ｷﾀ━━━(ﾟ∀ﾟ)━━━!!", "ｳﾞｧｲｵﾘﾝ", "ﾃﾞｨｽﾞﾆｰﾗﾝﾄﾞ", "ﾌﾟﾗｽﾁｯｸ製･耐熱･食洗機対応",
    "ｵｰｲ｡ﾊｰｲ｡", "周王朝ﾊ､中国ﾉ君主制政権ﾉ中ﾃﾞ最ﾓ長ｸ支配ｼﾀ｡", "Ça été là-bas", "ééé", "½+¼=¾", "£100 ¥200 ¢5", "\ue000さんと髙\ue001さん", "├── src\n└── tests",
    "憂鬱な麒麟、檸檬と薔薇と葡萄", "子曰、學而時習之、不亦說乎。", "Übergrößenträger", "×÷±",
]  # fmt: skip
_RIGHT_NUMBERS, _WRONG_NUMBERS = _my_numbers()
# Written after a first version of the rule for Chinese, which found thirteen of the twenty; it was widened for whole answers.
_CHINESE_LATER = [
    "今天的天气很好，我们去公园散步吧。", "请把这份文件发给经理。", "这本书的作者是谁？", "我觉得这个方案不太合适。", "春节是中国最重要的传统节日。",
    "他昨天去医院看病了。", "学习外语需要长期的坚持和努力。", "打开窗户，让新鲜空气进来。", "咖啡馆里坐满了人。", "如果明天下雨，比赛就会取消。",
    "電腦壞了，請幫我修理一下。", "我喜歡喝茶，不喜歡喝咖啡。", "這家餐廳的菜很好吃。", "地球围绕太阳转。", "价格根据数量而定。", "会议将于下周一举行。",
    "水果富含维生素。", "长城是世界文化遗产。", "公司成立于二〇〇五年。", "请注意安全，谨防滑倒。",
]  # fmt: skip
_NOT_CHINESE_LATER = [
    "定期的点検完了。", "全額返金対応完了。", "東京都千代田区一丁目。", "我田引水。四面楚歌。", "那覇市国際通。", "着払返品可能。", "在庫限定販売中。",
    "他社製品対応可能。", "合理的経済人仮説。", "社会的距離確保。手指消毒徹底。", "是非参加希望。", "一部地域対象外。", "東京大学大学院工学系研究科博士課程修了",
    "祇園精舎鐘声諸行無常響有", "南無妙法蓮華経、南無阿弥陀仏、色即是空", "道徳的、倫理的、法的、社会的課題", "豚骨醤油味玉入中華麺大盛", "我妻栄、我孫子武丸、吾妻光良",
    "了承、了解、終了、完了、修了、魅了", "東西南北中發白、一萬二萬三萬",
]  # fmt: skip
# Rows that a rule does not find.
MISSED = {"chinese": ["价格根据数量而定。"]}
# Key of a rule: (texts that it finds, texts that it leaves alone).
OWN: dict[str, tuple[list[str], list[str]]] = {
    "mojibake_likely": (_LIKELY, _NOT_LIKELY),
    "surrogate": (carried(["\ud83d", "\udc00", "\ud800", "\udfff"]), list(PLAIN)),
    "control": (carried(["\x00", "\x07", "\x1b[2J", "\x08", "\x7f"]), [*PLAIN[:18], "表\t組", "改\n行"]),
    "radical": (carried(["⻑野", "⻄暦", "⽇本", "⼤学", "⻘⾊", "⻝事", "⾼い", "⻯", "⻲", "⺠"]), list(PLAIN)),
    "decomposed": (carried(["か\u3099", "は\u309a", "セ\u3099ロ", "フ\u309a", "cafe\u0301", "A\u030aland"]), list(PLAIN)),
    "zero_width": (carried(["東\u200b京", "大\u2060阪", "\ufeff名古屋", "soft\u00adhyphen"]), [*PLAIN[:18], "👨‍👩‍👧の家族", "か\u3000き"]),
    "no_break_space": (carried(["5\u00a0kg", "A\u00a0B"]), list(PLAIN)),
    "entity": (carried(["A&amp;B", "&lt;注&gt;", "&quot;はい&quot;", "&nbsp;", "&#39;", "&#x27;"]), [*PLAIN[:14], "R&D;部門", "`&amp;`と書きます", "<b>A&amp;B</b>です", "AT&T", "Q&A;", "&と;"]),
    "reference_mark": (carried(["東京[1]", "大阪[12]", "名古屋[1][2]", "京都 [3]", "（要出典）[4]"]), [*PLAIN[:12], "[1] 東京", "`a[1]`です", "x = a[2]です", "値[0]です", "[注]です", "表[1](a)", "Array[1]", "[INST]"]),
    "template_token": (carried(_TOKENS), carried(_NO_TOKENS)),
    "template_token_asked": (carried(_TOKENS), carried(_NO_TOKENS)),
    "english": (_ENGLISH, _NOT_ENGLISH),
    "chinese": ([*_CHINESE, *_CHINESE_LATER], [*_NOT_CHINESE, *_NOT_CHINESE_LATER]),
    "foreign": (carried(_FOREIGN), carried(_NOT_FOREIGN)),
    "traditional": (carried(_TRADITIONAL), carried(_NOT_TRADITIONAL)),
    "my_number": (carried(_RIGHT_NUMBERS), carried(_WRONG_NUMBERS)),
    "card": (carried(_CARDS), carried(_NOT_CARDS)),
    "mobile": (carried(_MOBILES), carried(_NOT_MOBILES)),
    "phone": (carried(_PHONES), carried(_NOT_PHONES)),
    "postcode": (carried(_POSTCODES), carried(_NOT_POSTCODES)),
    "bank": (carried(_BANKS), carried(_NOT_BANKS)),
    "secret": (carried(_SECRETS), carried(_NOT_SECRETS)),
}  # fmt: skip
