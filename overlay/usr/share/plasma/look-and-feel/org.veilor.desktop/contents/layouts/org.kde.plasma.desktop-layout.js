// The first desktop of a new user. Later changes are the user's own.

loadTemplate("org.kde.plasma.desktop.defaultPanel");

desktopsForActivity(currentActivity()).forEach((desktop) => {
    desktop.wallpaperPlugin = "org.kde.image";
    desktop.currentConfigGroup = ["Wallpaper", "org.kde.image", "General"];
    desktop.writeConfig("Image", "file:///usr/share/wallpapers/Veilor/");
});

panels().forEach((panel) => {
    panel.widgets("org.kde.plasma.icontasks").forEach((tasks) => {
        tasks.currentConfigGroup = ["General"];
        tasks.writeConfig("launchers", [
            "preferred://browser",
            "preferred://filemanager",
            "applications:org.kde.konsole.desktop",
            "applications:systemsettings.desktop",
        ]);
        tasks.reloadConfig();
    });
});
