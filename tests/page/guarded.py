"""The page of a kvd that answers only who shows a token."""

READ = "a-token-that-may-read-this"
ROUTE = "a-token-that-may-route-and-read"
WRONG = "a-token-that-nobody-knows"


def tokens(dir, read):
    """Files of tokens, and what is set to guard kvd by them."""
    lines = []
    for right, token in (("read", read), ("write", "a-token-that-may-write-too")):
        path = dir / f"{right}.tokens"
        path.write_text(f"{token}\n")
        lines.append(f'{right}_tokens = "{path}"\n')
    return "[security]\n" + "".join(lines)


def asks(looker):
    looker.page.wait_for_selector("#auth:not([hidden])", timeout=30000)
    return looker.text("#auth-why")


def give(looker, token):
    looker.page.fill("#token", token)
    looker.page.press("#token", "Enter")


def stored(looker):
    return looker.page.evaluate("""() => ({ session: Object.values(sessionStorage), local: localStorage.length,
        cookies: document.cookie, address: location.href, field: document.getElementById('token').value })""")


def refused(looker, check):
    """What it says to who shows nothing, and to who shows what is not known."""
    check("who shows no token is asked for one", asks(looker), "kvd answers only who shows a token")
    check("and sees nothing else", looker.page.locator("main").is_visible(), False)
    check("nor links that would be refused", looker.page.locator("footer .reads").is_visible(), False)
    check("the stage says so", looker.text("#stage"), "a token is needed")
    check("there is nothing to forget", looker.page.locator("#forget").is_visible(), False)
    looker.page.wait_for_timeout(500)
    before = looker.requests
    looker.page.wait_for_timeout(5000)
    check("kvd is not asked again meanwhile", looker.requests - before, 0)
    give(looker, WRONG)
    looker.page.wait_for_selector("#auth.refused")
    check("a token that is not known is refused in words", asks(looker), "kvd does not know this token")
    check("and still nothing is seen", looker.page.locator("main").is_visible(), False)


def accepted(looker, kvd, check):
    """What is shown to who may read, and where the token is kept."""
    give(looker, READ)
    looker.page.wait_for_selector("body[data-shown]", state="attached")
    check("the page is shown", looker.page.locator("main").is_visible(), True)
    check("pods", looker.text("#tile-pods .value"), "0 / 0")
    check("the form is gone", looker.page.locator("#auth").is_visible(), False)
    check("the token is kept for the tab and nowhere else", stored(looker),
          {"session": [READ], "local": 0, "cookies": "", "address": f"http://{kvd.http}/", "field": ""})
    looker.page.reload()
    looker.page.wait_for_selector("body[data-shown]", state="attached")
    check("it outlives a reload", looker.page.locator("#auth").is_visible(), False)
    with looker.context.expect_page() as opened:
        looker.page.click("footer a[href='/metrics']")
    opened.value.wait_for_load_state()
    check("links show it as well", "kvd_publishers" in opened.value.inner_text("body"), True)
    opened.value.close()
    other = looker.context.new_page()
    other.goto(f"http://{kvd.http}/")
    other.wait_for_selector("#auth:not([hidden])")
    check("another tab has its own", other.evaluate("sessionStorage.length"), 0)
    other.close()
    asked = [url for url in looker.asked if READ in url or WRONG in url]
    check("addresses with a token in them", asked, [])


def taken_back(looker, kvd, check, dir):
    """A token that is taken back while somebody looks, and one that is forgotten."""
    tokens(dir, ROUTE)
    looker.page.wait_for_selector("#auth.refused", timeout=30000)
    check("a token that is taken back is said to be", asks(looker), "kvd does not know this token")
    check("what was shown stays", looker.page.locator("main").is_visible(), True)
    tokens(dir, READ)
    looker.page.wait_for_timeout(2500)
    give(looker, READ)
    looker.page.wait_for_selector("#auth", state="hidden")
    check("it is taken again", looker.text("#stage") != "a token is needed", True)
    looker.page.click("#forget")
    looker.page.wait_for_selector("body[data-locked]", state="attached")
    check("it can be forgotten", stored(looker)["session"], [])
    check("and what it showed goes with it", looker.page.locator("main").is_visible(), False)
