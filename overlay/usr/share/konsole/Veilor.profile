[Appearance]
ColorScheme=Veilor
Font=Noto Sans Mono,11,-1,5,50,0,0,0,0,0
LineSpacing=1

[General]
Name=Veilor
Parent=FALLBACK/
TerminalMargin=8

[Interaction Options]
UnderlineFilesEnabled=true

[Scrolling]
HistoryMode=1
HistorySize=20000

[Terminal Features]
BlinkingCursorEnabled=false
