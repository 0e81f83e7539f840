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


_LATIN_INSIDE = [
    "御treat走", "生inger", "比phor的", "説plain書", "簡imple的な", "重portant性", "発elopment", "経perience則", "環vironment的", "社ciety的", "文ulture圏",
    "歴istory的", "科cience者", "技nology力", "教ducation者", "健ealth的", "自ature的", "音usic的", "料ecipe法", "旅ravel記",
]  # fmt: skip
_NOT_LATIN_INSIDE = [
    "約kcal分", "別途emailで", "公式twitterの", "社内slackの", "動画youtubeの", "独自apiの", "外部linkの", "最新iphoneの", "変数fooの", "無線wifiの",
    "全km分", "会議はZoomの", "東京 tower の", "画面のpdfを", "A社のserver", "年間10gbの", "URLはhttpsで", "約5kgの", "PCのosを", "第nラウンド",
]  # fmt: skip
_AI = [
    "私はAIとして、感情を持ちません。", "AIとして、最新の情報は分かりません。", "言語モデルとして学習したため、分かりません。", "私は人工知能なので、食事をしません。", "AIアシスタントとして、お手伝いします。",
    "私はAIであり、個人の意見はありません。", "私はAIですので、体験はありません。", "言語モデルであるため、実行できません。", "ＡＩとしての立場から説明します。", "As an AI, I have no feelings.",
    "As an AI language model, I cannot do that.", "大規模言語モデルなので、誤ることがあります。", "私は人工知能として作られました。", "AIなので、疲れません。", "AIであるため、名前はありません。",
    "私は言語モデルですので、予約はできません。", "AIアシスタントなので、電話はかけられません。", "人工知能ですので、涙は出ません。", "申し訳ありませんが、AIとしてお答えできません。", "言語モデルとしては、中立でありたいです。",
]  # fmt: skip
_NOT_AI = [
    "ChatGPTはOpenAIの製品です。", "言語モデルは確率を学びます。", "AIの歴史は長い。", "人工知能の研究は1950年代に始まりました。", "AIを使った翻訳です。", "AIが絵を描きました。",
    "AI技術者が不足しています。", "生成AIの利用が広がっています。", "AIに聞いてみましょう。", "言語モデルの評価には時間がかかります。", "AI搭載のカメラです。", "人工知能学会に入りました。",
    "AIスピーカーを買いました。", "この小説にはAIが登場します。", "AIと人間の違いを考えます。", "As an aide, she helped him.", "AIで作った音楽です。", "言語モデルを学習します。", "AI倫理の授業です。",
    "人工知能は道具です。",
]  # fmt: skip
_SIMPLIFIED = list("东这们说时间对话车给让谁还龙过")
_NOT_SIMPLIFIED = list("国学会来与余体点虫党声医万号台弁欠岳尽庁")
_EMAILS = [
    "a.b@example.co.jp", "info@example.com", "taro_yamada@example.ne.jp", "123@example.com", "ａｂｃ＠ｅｘａｍｐｌｅ．ｃｏｍ", "x+tag@example.org", "A.B@EXAMPLE.COM",
    "support@sub.example.co.jp", "a-b@example.info", "sales%jp@example.com", "hanako@example.tokyo", "me@example.io", "n0@example.ac.jp", "first.last@example.go.jp",
    "a@b.example.jp", "long.name.of.person@example.museum", "ｔａｒｏ＠example.com", "q@example.dev", "mail@example-shop.jp", "u_1@ex-ample.or.jp",
]  # fmt: skip
_NOT_EMAILS = [
    "@taro", "taro@", "3@100円", "A＠B", "user@と書く", "@example.com", "a@b", "x @ y.com", "＠駅前", "10:00@会議室", "foo@bar.", "価格@.com", "a@.jp", "@@", "メール@", "i@j=k",
    "＠マーク", "山田＠東京", "1@2.3", "時刻@12.30",
]  # fmt: skip
_ADDRESSES = [
    "東京都港区芝公園4丁目2番8号", "大阪府大阪市北区堂島浜2丁目", "神奈川県横浜市中区本町1-2", "北海道札幌市中央区北1条西2丁目", "京都府京都市中京区寺町通3番地", "愛知県名古屋市中区三の丸3-1-2",
    "福岡県福岡市博多区東公園7番7号", "埼玉県さいたま市浦和区高砂3-15-1", "千葉県千葉市中央区市場町1-1", "兵庫県神戸市中央区下山手通5-10-1", "宮城県仙台市青葉区本町3丁目8番1号", "広島県広島市中区基町10-52",
    "沖縄県那覇市泉崎1-2-2", "長野県長野市大字南長野692番地", "静岡県静岡市葵区追手町9番6号", "新潟県新潟市中央区新光町4番地1", "岡山県岡山市北区内山下2-4-6", "熊本県熊本市中央区水前寺6-18-1",
    "東京都新宿区西新宿２丁目８番１号", "石川県金沢市鞍月1丁目1番地",
]  # fmt: skip
_NOT_ADDRESSES = [
    "東京都は広い", "港区芝公園4丁目", "京都府の人口は250万人", "北海道の市町村は179", "東京都の23区", "大阪府には43の市町村", "横浜市中区", "福岡県の1月の気温", "神奈川県第2位の都市", "長野県の標高3000m",
    "都道府県は47", "千葉県内で10人", "愛知県と3つの県", "静岡県産2kg", "新潟県米5kg", "沖縄県は2月も暖かい", "広島県の歴史100年", "宮城県沖の地震", "兵庫県立高校3年", "石川県出身の5人",
]  # fmt: skip
_CUT = "この条約は長い交渉のすえ、各国の代表者が集まった秋の会議での話し合いにより、"
_TRUNCATED = [_CUT + end for end in (
    "最終的に承認されて2019年7月29日に", "多くの国が参加しましたが、", "関係者は説明を", "その後の経済成長に大きな影響を与えたことが", "反対する国もありましたが", "各国の議会で承認されるために",
    "経済だけでなく文化に対して", "新しい技術が必要なので", "世界の平和を守るためのものとして", "多くの人々が待っていたのに", "参加した国の代表者は", "会議の結果と", "首都で開かれた会議へ",
    "日本の政府が提案した内容も", "その内容について", "経済の安定により", "会議で議論したことを", "専門家によって", "多くの課題を解決するために", "市場の動向や",
)]  # fmt: skip
_NOT_TRUNCATED = [_CUT + end for end in (
    "最終的に承認されました。", "多くの国が参加した。", "合意に至りました（2019年）", "世界に広がりました！", "次の課題も見えました…", "「平和」と名付けられました」", "承認された",
    "可決。", "解決しました♪", "決まりました？", "次の通りです：", "成立しました[1]", "署名されています", "いまも続いている", "発効する", "大きな一歩です", "2019年", "三十か国", "終わり", "以上",
)]  # fmt: skip
_LOOPS = [f"{start}{unit * times}" for start, unit, times in (
    ("", "はい", 40), ("返事は", "とても、", 20), ("答えは、", "そうです。", 12), ("", "東京", 30), ("首都です。", "詳しくはお問い合わせください。", 5), ("", "ははは", 30), ("はじめに", "ありがとう", 15),
    ("説明します。", "これは大切なことです。", 6), ("", "1、2、3、", 15), ("数えます。", "一二三四五", 12), ("", "A、B、", 20), ("歌います。", "ラララ", 20), ("", "なるほど！", 15), ("質問ですか？", "何ですか？", 12),
    ("例として、", "例えば、", 14), ("", "！？", 30), ("続きます", "、そして", 14), ("文です。", "同じ文がまた続いています。", 5), ("", "yes ", 15), ("州政府", "、州政府", 15),
)]  # fmt: skip
_NOT_LOOPS = [
    "2、3、5、7、11、13、17、19、23、29、31、37、41、43、47、53、59、61、67、71、73", "ありがとうございます。ありがとうございます。", "見出し\n" + "-" * 80, "はい、はい、はい。", "わっはっはっは。", "---\n***\n---",
    "一つ目です。二つ目です。三つ目です。四つ目です。", "あああああ", "ドキドキ、ワクワク、ソワソワしながら待っていました。", "1. 東京\n2. 大阪\n3. 名古屋\n4. 札幌\n5. 福岡\n6. 仙台", "いろはにほへとちりぬるを" * 2,
    "春は花、夏は海、秋は月、冬は雪。", "やまびこが、やっほー、やっほーと返ってきました。", "円周率は3.14159265358979323846264338327950288419716939937510です。", "=" * 60, "･" * 60, "東京都、京都府、大阪府、北海道、青森県、岩手県、宮城県、秋田県",
    "トントントンと戸をたたく音がしたので、開けてみると猫がいました。", "もしもし、もしもし、聞こえますか、聞こえますか。", "行こう。さあ行こう。いま行こう。みんなで行こう。",
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
    "latin_inside": (carried(_LATIN_INSIDE), carried(_NOT_LATIN_INSIDE)),
    "ai_identity": (_AI, _NOT_AI),
    "simplified": (carried(_SIMPLIFIED), carried(_NOT_SIMPLIFIED)),
    "email": (carried(_EMAILS), carried(_NOT_EMAILS)),
    "address": (carried(_ADDRESSES), carried(_NOT_ADDRESSES)),
    "truncated": (_TRUNCATED, _NOT_TRUNCATED),
    "loop": (_LOOPS, _NOT_LOOPS),
    "my_number": (carried(_RIGHT_NUMBERS), carried(_WRONG_NUMBERS)),
    "card": (carried(_CARDS), carried(_NOT_CARDS)),
    "mobile": (carried(_MOBILES), carried(_NOT_MOBILES)),
    "phone": (carried(_PHONES), carried(_NOT_PHONES)),
    "postcode": (carried(_POSTCODES), carried(_NOT_POSTCODES)),
    "bank": (carried(_BANKS), carried(_NOT_BANKS)),
    "secret": (carried(_SECRETS), carried(_NOT_SECRETS)),
}  # fmt: skip
