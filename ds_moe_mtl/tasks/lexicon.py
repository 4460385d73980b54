"""The words of the embedded suite, written for it."""

# Who.
AGENTS = (
    "the baker",
    "a nurse",
    "the young teacher",
    "a tall farmer",
    "the postman",
    "our neighbour",
    "the retired captain",
    "a student",
    "the gardener",
    "my cousin",
    "the night guard",
    "a painter",
    "the new manager",
    "an old sailor",
    "the librarian",
    "a bus driver",
    "the violinist",
    "a carpenter",
    "the mayor",
    "a shy boy",
    "the dentist",
    "her aunt",
    "the electrician",
    "a journalist",
)

# What: as it is told, said otherwise, what follows from it, and what rules it out.
ACTIONS = (
    ("bought a loaf of bread", "purchased a loaf", "paid for some food", "sold a loaf of bread"),
    ("repaired the old radio", "fixed the radio", "mended a device", "broke the old radio"),
    ("opened the iron gate", "unlocked the gate", "let the gate swing free", "locked the gate"),
    ("lost a silver key", "mislaid a key", "no longer had a certain key", "found a silver key"),
    ("praised the new play", "spoke well of the play", "gave an opinion", "mocked the new play"),
    ("lit the big lantern", "switched the lantern on", "made some light", "put out the lantern"),
    ("hid a bundle of letters", "concealed the letters", "kept mail secret", "showed the letters"),
    ("borrowed a wooden ladder", "took a ladder on loan", "got hold of a ladder", "lent a ladder"),
    ("fed the hungry horses", "gave the horses hay", "cared for animals", "starved the horses"),
    ("filled the glass jar", "topped up the jar", "handled a container", "emptied the glass jar"),
    ("won a chess game", "beat a rival at chess", "played a board game", "lost a chess game"),
    ("cleaned the dusty floor", "swept the floor", "did some housework", "dirtied the floor"),
    ("accepted the strange offer", "agreed to the offer", "gave an answer", "refused the offer"),
    ("built a small shed", "put up a little shed", "made a structure", "tore down a small shed"),
    ("forgot the long poem", "could not recall the poem", "had once learned it", "knew the poem"),
    ("boiled six brown eggs", "cooked half a dozen eggs", "prepared eggs", "ate the eggs raw"),
    ("planted a row of beans", "set out some beans", "worked in the soil", "dug up the beans"),
    ("raised the rent", "asked for a higher rent", "changed the rent", "lowered the rent"),
    ("sent a thick parcel", "mailed a parcel", "dispatched something", "received a thick parcel"),
    ("woke the sleeping dog", "roused the dog", "disturbed a pet", "let the dog sleep on"),
    ("loaded the rusty truck", "put cargo on the truck", "moved goods", "unloaded the truck"),
    ("sang a slow ballad", "performed a ballad", "made music", "stayed silent all along"),
    ("wore a green raincoat", "had a green coat on", "was dressed in green", "went without a coat"),
    ("caught a large trout", "landed a big trout", "took a fish", "failed to catch any fish"),
)

# Where, when and with whom: two wordings of each; any two rows exclude each other.
PLACES = (
    ("in the kitchen", "inside the kitchen"),
    ("on the night train", "aboard the train"),
    ("at the harbour", "down by the docks"),
    ("behind the church", "at the back of the church"),
    ("in the school yard", "on the school grounds"),
    ("at the market", "among the market stalls"),
    ("in the hospital", "at the clinic"),
)
TIMES = (
    ("early in the morning", "soon after sunrise"),
    ("at noon", "in the middle of the day"),
    ("late at night", "long after dark"),
    ("on Sunday", "on the last day of the week"),
    ("last winter", "in the cold months"),
)
COMPANIONS = (
    ("all alone", "without any company"),
    ("with a colleague", "along with someone from work"),
    ("with two children", "together with a couple of kids"),
    ("with the whole family", "in the company of every relative"),
    ("with an old friend", "beside a friend of many years"),
)

# Reviews: what is judged, and words for and against it.
REVIEWED = ("hotel", "restaurant", "museum", "ferry", "bakery", "theatre", "campsite", "workshop")
ASPECTS = ("staff", "food", "room", "view", "music", "price", "service", "parking", "lighting")
GOOD = ("lovely", "excellent", "pleasant", "superb", "charming", "wonderful", "delightful", "great")
BAD = ("awful", "dreadful", "shabby", "terrible", "poor", "miserable", "disappointing", "horrid")

# One thing led to the next, and that to a third.
CHAINS = (
    ("{} left the tap running", "The bathroom was flooded", "The carpet had to be thrown away"),
    ("{} forgot to set the alarm", "The bus left half empty", "The shift began one worker short"),
    ("{} dropped a lit match", "The haystack caught fire", "The fire brigade raced to the farm"),
    ("{} told a very funny joke", "Everyone burst out laughing", "The speaker lost the thread"),
    ("{} left the freezer open", "The ice cream melted", "The guests got no dessert"),
    ("{} cut the wrong cable", "The lights went out", "People looked for candles"),
    ("{} trained every day for a year", "The race was won easily", "A medal hung on the wall"),
    ("{} spilled ink on the page", "The letter could not be read", "A new letter was written"),
    (
        "{} planted tulips in autumn",
        "The garden was full of colour in spring",
        "Bees came in swarms",
    ),
    ("{} sang far too loudly", "The baby woke up crying", "The mother warmed some milk"),
    ("{} pushed the wrong button", "The machine stopped", "The factory sent everyone home"),
    ("{} fed the stray cat", "The cat came back every day", "The mice moved out of the barn"),
    ("{} lied about the money", "Trust was broken", "The partners went separate ways"),
    ("{} drove over a nail", "The tyre went flat", "The spare wheel was fitted"),
    ("{} put salt in the tea", "The drink tasted terrible", "The cup was poured into the sink"),
    ("{} left the gate unlocked", "The sheep wandered off", "The shepherd searched the valley"),
    ("{} practised the piano at night", "The neighbours could not sleep", "A complaint was filed"),
    ("{} found a rare coin", "The museum paid a fortune", "A new house was bought"),
    ("{} ignored the warning signs", "The ice gave way", "A rescue team was called"),
    ("{} shook the apple tree", "Ripe fruit fell to the ground", "A pie was baked"),
)

# Words of two senses, with sentences for each; {} is somebody.
SENSES = {
    "bank": (
        ("{} opened an account at the bank", "The bank raised its interest on loans again"),
        ("{} fished from the bank of the river", "Reeds grew along the muddy bank"),
    ),
    "bat": (
        ("{} swung the bat and missed the ball", "A wooden bat leaned against the dugout"),
        ("{} saw a bat hanging in the cave", "A bat flew past catching moths"),
    ),
    "spring": (
        ("{} waited for spring and the first flowers", "Lambs are born here in spring"),
        ("{} replaced the broken spring of the mattress", "A steel spring holds the lid shut"),
    ),
    "ring": (
        ("{} wore a gold ring with a ruby", "The bride put the ring on her finger"),
        ("{} climbed into the ring to fight", "The boxer was carried out of the ring"),
    ),
    "match": (
        ("{} struck a match to light the stove", "One damp match would not burn"),
        ("{} scored twice in the match", "The match ended in a draw after extra time"),
    ),
    "light": (
        ("{} packed a light bag for the trip", "The basket is light enough for a child"),
        ("{} turned on the light in the hall", "A dim light shone from the window"),
    ),
    "letter": (
        ("{} wrote a letter to the landlord", "The letter arrived in a blue envelope"),
        (
            "{} could not spell the last letter of the word",
            "Every sentence starts with a capital letter",
        ),
    ),
    "plant": (
        ("{} watered the plant on the window sill", "The plant has yellow leaves and thin roots"),
        ("{} worked shifts at the chemical plant", "The plant makes cement and employs hundreds"),
    ),
    "seal": (
        ("{} watched a seal dive under the ice", "A seal barked on the rocks with its pup"),
        ("{} broke the seal on the jar", "The wax seal on the document was intact"),
    ),
    "trunk": (
        ("{} carved a heart into the trunk of the oak", "Moss covered the trunk and the branches"),
        ("{} saw the elephant lift its trunk", "The calf sprayed water with its trunk"),
    ),
    "wave": (
        ("{} surfed a huge wave near the shore", "The wave crashed over the small boat"),
        ("{} gave a friendly wave from the window", "With a wave of the hand the talk was over"),
    ),
    "file": (
        ("{} saved the file on the computer", "The file was too large to send"),
        ("{} smoothed the metal with a file", "A coarse file takes off the sharp edges"),
    ),
    "crane": (
        ("{} lifted the beams with a crane", "The crane on the building site swung round"),
        ("{} photographed a crane in the marsh", "A grey crane spread its wings and rose"),
    ),
    "pitch": (
        ("{} sang the song at a higher pitch", "The pitch of the engine rose to a whine"),
        ("{} mowed the grass of the football pitch", "The players ran onto the pitch"),
    ),
}
